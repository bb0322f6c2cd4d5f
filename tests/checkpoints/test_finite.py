"""What the bits of numbers say of them, against torch's own judgement, for every dtype of a tensor file."""

import pytest
import torch

from dynaxx.checkpoints.finite import Finiteness
from dynaxx.checkpoints.manifest import Manifest, dump_manifest, parse_manifest
from dynaxx.checkpoints.tensorfile import CODES, FileEntry, TensorEntry, write_tensors

JUDGED = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2)


def word(tensor, chunk=64):
    data = tensor.contiguous().view(torch.uint8).numpy().data
    seen = Finiteness(CODES[tensor.dtype], chunk)
    for start in range(0, len(data), chunk):
        seen.update(data[start : start + chunk])
    return seen.word


def expected(tensor):
    wide = tensor.double()
    return "nan" if wide.isnan().any() else "inf" if wide.isinf().any() else ""


@pytest.mark.parametrize("dtype", JUDGED)
def test_random_bits_are_judged_as_torch_judges_them(dtype):
    generator, met = torch.Generator().manual_seed(0), set()
    for size in (1, 2, 3, 40, 100):
        for _ in range(100):
            raw = torch.randint(0, 256, (size * dtype.itemsize,), dtype=torch.uint8, generator=generator)
            tensor = raw.view(dtype)
            met.add(expected(tensor))
            assert word(tensor) == expected(tensor)
    assert {"", "nan"} <= met


@pytest.mark.parametrize("dtype", JUDGED)
@pytest.mark.parametrize("place", [0, 63, 64, 99])  # within a chunk, and on both sides of a border
def test_one_number_in_a_hundred_is_found_wherever_it_is(dtype, place):
    for value, said in ((torch.inf, "inf"), (-torch.inf, "inf"), (torch.nan, "nan"), (-torch.nan, "nan")):
        tensor = torch.full((100,), -0.0).to(dtype)
        tensor[place] = value
        assert word(tensor) == said
    largest = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min, torch.finfo(dtype).tiny], dtype=dtype)
    assert word(largest) == ""


def test_nothing_is_said_of_integers_nor_of_nothing():
    assert word(torch.full((3,), -1, dtype=torch.int32)) == ""  # the bits of a NaN
    assert word(torch.empty(0)) == ""


def test_the_manifest_says_it_of_each_tensor_and_of_pieces_the_worst(tmp_path):
    large = torch.zeros(200_000)  # several chunks of 256 KiB
    large[199_999] = torch.nan
    _, entries = write_tensors(tmp_path / "t", {"a": large, "b": torch.tensor([torch.inf]), "c": torch.ones(1)})
    assert {name: entry.not_finite for name, entry in entries.items()} == {"a": "nan", "b": "inf", "c": ""}

    def piece(start, said):
        return TensorEntry(dtype="F32", shape=(1,), digest="0", offsets=(start,), not_finite=said)

    manifest = Manifest(
        step=7,
        id="000001-00000000",
        created="",
        files={name: FileEntry(size=1, digest="0") for name in ("state.json", "shard-00000.safetensors")},
        tensors={"shard-00000.safetensors": {"a": piece(0, "nan"), "b": piece(0, ""), "c": piece(1, "inf")}},
        facts={},
    )
    read = parse_manifest(dump_manifest(manifest), tmp_path / manifest.folder)
    assert read == manifest
    assert read.info(tmp_path).not_finite == {"a": "nan", "c": "inf"}
    both = Manifest(
        **{n: getattr(manifest, n) for n in ("step", "id", "created", "files", "facts")},
        tensors={"one": {"a": piece(0, "inf")}, "two": {"a": piece(1, "nan")}, "three": {"a": piece(2, "inf")}},
    )
    assert both.info(tmp_path).not_finite == {"a": "nan"}
