import json

import pytest
import torch
import xxhash
from safetensors.torch import load_file

from dynaxx.checkpoints.tensorfile import CODES, FileEntry, TensorEntry, _header, read_tensors, write_tensors
from dynaxx.errors import CorruptData


def sample(dtype, shape=(3, 5)):
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (15 * dtype.itemsize,), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


@pytest.fixture
def tensors():
    named = {f"{code} é": sample(dtype) for dtype, code in CODES.items()}
    return {"scalar": torch.tensor(1.5), "none": torch.empty(0, 3), "odd": torch.arange(10)[::5][:1], **named}


def test_safetensors_library_reads_the_same(tmp_path, tensors, identical):
    write_tensors(tmp_path / "t", tensors)
    peer = load_file(tmp_path / "t")
    assert peer.keys() == tensors.keys()
    assert all(identical(peer[name], tensors[name]) for name in tensors)


def test_round_trip_with_memory_of_its_own(tmp_path, tensors, identical):
    file, entries = write_tensors(tmp_path / "t", tensors)
    back = dict(read_tensors(tmp_path / "t", file, entries))
    assert all(identical(back[name], tensors[name]) for name in tensors)
    assert len({t.untyped_storage().data_ptr() for t in back.values() if t.numel()}) == len(back) - 1


def test_digests_are_those_of_the_public_algorithm(tmp_path):
    tensor = torch.arange(2_000_000)  # several chunks
    file, entries = write_tensors(tmp_path / "t", {"a": tensor})
    data = (tmp_path / "t").read_bytes()
    assert file == FileEntry(size=len(data), digest=xxhash.xxh3_128_hexdigest(data))
    assert entries["a"].digest == xxhash.xxh3_128_hexdigest(tensor.numpy().tobytes())


def test_every_tensor_is_aligned_to_its_dtype(tmp_path, tensors):
    write_tensors(tmp_path / "t", {**tensors, "x": torch.ones(3, dtype=torch.uint8), "y": torch.ones(1).double()})
    data = (tmp_path / "t").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    sizes = {code: dtype.itemsize for dtype, code in CODES.items()}
    for entry in json.loads(data[8:start]).values():
        if "data_offsets" in entry:
            assert (start + entry["data_offsets"][0]) % sizes[entry["dtype"]] == 0


def test_no_file_is_written_over(tmp_path):
    (tmp_path / "t").write_bytes(b"kept")
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "t", {})
    assert (tmp_path / "t").read_bytes() == b"kept"


def test_corrupted_tensor_is_named(tmp_path):
    file, entries = write_tensors(tmp_path / "t", {"first": torch.zeros(4), "second": torch.zeros(4)})
    data = bytearray((tmp_path / "t").read_bytes())
    data[-1] ^= 1
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(CorruptData, match="'second'"):
        dict(read_tensors(tmp_path / "t", file, entries))


def test_huge_claims_allocate_nothing(tmp_path):
    file, _ = write_tensors(tmp_path / "t", {"a": torch.zeros(4)})
    claim = {"a": TensorEntry(dtype="F64", shape=(1 << 40,), digest="")}
    with pytest.raises(CorruptData, match="do not agree"):
        dict(read_tensors(tmp_path / "t", file, claim))
    with pytest.raises(CorruptData, match="were written"):
        dict(read_tensors(tmp_path / "t", FileEntry(size=8 * (1 << 40) + len(_header(claim)), digest=""), claim))


@pytest.mark.parametrize(("dtype", "shape"), [("F32", (-1,)), ("PICKLE", (1,)), ("F32", (True,)), ("F32", (2.0,))])
def test_entries_outside_the_format_are_refused(dtype, shape):
    with pytest.raises(ValueError, match="a tensor of dtype"):
        TensorEntry(dtype=dtype, shape=shape, digest="")
