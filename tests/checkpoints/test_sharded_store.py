"""States cut up over ranks: saved on some, read on others, whole in one process; and what fails, fails everywhere."""

import json
import random
import shutil
import subprocess
import sys

import _sharded_cases
import pytest
import torch
from _sharded_cases import same, whole

from dynaxx.checkpoints import CheckpointStore
from dynaxx.checkpoints.durable import digest
from dynaxx.checkpoints.manifest import _SEAL, NAME
from dynaxx.errors import BadInput, CorruptData


def launch(folder, names, world, gone=()):
    command = [sys.executable, _sharded_cases.__file__, str(folder), names]
    ranks = [
        subprocess.Popen([*command, str(rank), str(world)], stderr=subprocess.PIPE, text=True) for rank in range(world)
    ]
    try:
        said = [rank.communicate(timeout=240)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    codes = [0 if rank in gone else process.returncode for rank, process in enumerate(ranks)]
    assert codes == [0] * world, "\n".join(said)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch(folder, "save,load,resume,errors,fallback", 2)
    return folder


def test_two_ranks(two):
    assert len(list(two.glob("c/0*"))) == 7


def test_one_process_reads_it_whole(two):
    store = CheckpointStore(two / "c")
    for info in store.list():
        assert same(store.load(info)[0], whole(info.step))
        store.verify(info)
        assert store.is_sound(info)
    state, _ = store.load(only=("plain", "step"))
    assert same(state, {key: whole(7)[key] for key in ("plain", "step")})


def test_torch_reads_the_files_too(two, tmp_path):
    """The trusted peer: its own reader, on a folder with the tensor files alone."""
    import torch.distributed.checkpoint as dcp

    for file in CheckpointStore(two / "c").load()[1].path.glob("*.safetensors"):
        shutil.copy(file, tmp_path)
    truth = {f"cut/{name}": tensor for name, tensor in whole(7)["cut"].items()}
    found = {name: torch.zeros_like(tensor) for name, tensor in truth.items()}
    with pytest.warns(UserWarning, match="single process"):
        dcp.load(found, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path)))
    assert same(found, truth)


def test_every_flipped_bit_and_truncation_of_every_file_is_found(two, tmp_path):
    shutil.copytree(CheckpointStore(two / "c").load()[1].path, tmp_path / "0")
    name = CheckpointStore(two / "c").load()[1].path.name
    (tmp_path / "0").rename(tmp_path / name)
    store = CheckpointStore(tmp_path)
    (info,) = store.list()
    draw = random.Random(0)
    files = sorted(info.path.iterdir())
    assert len(files) == 4
    for file in files:
        good = file.read_bytes()
        for position in [0, len(good) - 1, *(draw.randrange(len(good)) for _ in range(60))]:
            data = bytearray(good)
            data[position] ^= 1 << draw.randrange(8)
            file.write_bytes(data)
            with pytest.raises(CorruptData, match=file.name.replace(".", r"\.")):
                store.load(info)
        for size in {*(len(good) * k // 16 for k in range(16)), len(good) - 1}:
            file.write_bytes(good[:size])
            with pytest.raises(CorruptData):
                store.verify(info, deep=False)
            with pytest.raises(CorruptData):
                store.load(info)
        file.unlink()
        with pytest.raises(CorruptData):
            store.load(info)
        file.write_bytes(good)
    store.verify(info)


def reseal(path, change):
    body = json.loads(path.read_bytes())
    del body["xxh3_128"]
    change(body)
    text = json.dumps(body).removesuffix("}").encode()
    path.write_bytes(text + _SEAL.format(digest(text)).encode())


def first(m):
    return m["tensors"]["shard-00000.safetensors"]


def second(m):
    return m["tensors"]["shard-00001.safetensors"]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: second(m)["cut/rows"].update(offsets=[5, 0]),  # a gap behind the first four rows
        lambda m: second(m)["cut/rows"].update(offsets=[3, 0]),  # twice the same row
        lambda m: second(m)["cut/rows"].update(offsets=[0, 0]),
        lambda m: second(m)["cut/rows"].update(offsets=[1 << 40, 0]),
        lambda m: first(m)["cut/rows"].update(shape=[1 << 40, 3]),
        lambda m: second(m)["cut/columns"].update(dtype="I64"),
        lambda m: second(m).pop("cut/rows"),
        lambda m: m["tensors"].pop("shard-00001.safetensors"),
        lambda m: m["tensors"].update({"../shard-00001.safetensors": m["tensors"].pop("shard-00001.safetensors")}),
        lambda m: m["tensors"].update({"tensors.safetensors": m["tensors"].pop("shard-00001.safetensors")}),
        lambda m: m["files"].update({"shard-00002.safetensors": m["files"]["shard-00001.safetensors"]}),
    ],
)
def test_pieces_that_do_not_make_up_a_tensor_are_refused(two, tmp_path, change):
    path = CheckpointStore(two / "c").load()[1].path
    shutil.copytree(path, tmp_path / path.name)
    store = CheckpointStore(tmp_path)
    reseal(tmp_path / path.name / NAME, lambda m: None)
    store.load(7)
    reseal(tmp_path / path.name / NAME, change)
    with pytest.raises(CorruptData):
        store.load(7)
    with pytest.raises(CorruptData):
        store.verify(7)


def test_shards_of_another_save_are_found(two, tmp_path):
    store = CheckpointStore(two / "c")
    a, b = store.list()[-2:]
    shutil.copytree(a.path, tmp_path / a.path.name)
    shutil.copy(b.path / "shard-00001.safetensors", tmp_path / a.path.name)
    with pytest.raises(CorruptData, match="shard-00001"):
        CheckpointStore(tmp_path).load(a.step)


def test_without_ranks_there_is_no_sharded_store(tmp_path):
    from dynaxx.checkpoints.sharded import ShardedStore

    with pytest.raises(BadInput, match="init_process_group"):
        ShardedStore(tmp_path)


@pytest.mark.slow
def test_four_ranks_write_and_one_two_and_three_read(tmp_path, two):
    launch(tmp_path, "save,load,meshes,both,resume,errors,fallback", 4)
    for world in (1, 2, 3):
        launch(tmp_path, "load,resume", world)
    assert same(CheckpointStore(tmp_path / "c").load()[0], whole(7))


@pytest.mark.slow
@pytest.mark.parametrize(("how", "world"), [("killed", 2), ("killed", 4), ("first_killed", 3), ("stopped", 3)])
def test_rank_lost_in_the_middle(tmp_path, how, world):
    launch(tmp_path, how, world, gone={0 if how == "first_killed" else 1})
    assert same(CheckpointStore(tmp_path / "k").load()[0], whole(1))
    launch(tmp_path, "after", 1)
    assert not list((tmp_path / "k" / ".staging").iterdir())


@pytest.mark.slow
def test_rank_that_does_not_come_is_named(tmp_path):
    launch(tmp_path, "absent", 3)
