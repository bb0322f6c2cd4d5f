import json
import math
import os
import random
import resource
import shutil
import time

import pytest
import torch

from dynaxx.checkpoints import CheckpointStore, NotSaved
from dynaxx.checkpoints import staging as staging_module
from dynaxx.checkpoints import store as store_module
from dynaxx.checkpoints.durable import digest
from dynaxx.checkpoints.manifest import _SEAL, NAME, STATE, TENSORS
from dynaxx.checkpoints.staging import is_orphan, staging_name
from dynaxx.errors import BadInput, CorruptData, DynaxxWarning

FILES = (NAME, STATE, TENSORS)


def content(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "weight": torch.randn(32, 8, generator=generator),
        "moment": torch.randn(32, 8, generator=generator, dtype=torch.float64),
        "step": step,
        "note": f"step {step}",
    }


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "run" / "checkpoints")


def flip(path, position, bit=0):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def test_save_and_load(store, identical):
    info = store.save(7, content(7), facts={"val_loss": float("nan"), "reason": "manual"})
    state, loaded = store.load()
    assert identical(state, content(7))
    assert (loaded.step, loaded.id, loaded.path, loaded.size) == (7, info.id, info.path, info.size)
    assert math.isnan(loaded.facts["val_loss"])
    assert loaded.facts["reason"] == "manual"
    assert loaded.passed_over == ()
    assert sorted(p.name for p in info.path.iterdir()) == sorted(FILES)
    assert info.size == sum((info.path / name).stat().st_size for name in (STATE, TENSORS))
    assert not list((store.folder / ".staging").iterdir())


def test_order_is_by_step_then_save_and_never_by_clock(store, monkeypatch):
    steps = [30, 9, 30, 10_000_000_000, 30, 9_999_999_999]
    infos = [store.save(step, content(step)) for step in steps]
    for age, info in enumerate(infos):
        os.utime(info.path, (1e9 - age * 1e6, 1e9 - age * 1e6))
    assert [i.id for i in store.list()] == [infos[k].id for k in (1, 0, 2, 4, 5, 3)]
    assert store.load(30)[1].id == infos[4].id
    assert store.load()[1].step == 10_000_000_000
    assert len({i.path.name for i in infos}) == 6


def test_numbers_go_on_over_quarantine_and_trash(store):
    store.save(1, content(1))
    last = store.save(2, content(2))
    (store.folder / "quarantine").mkdir()
    last.path.rename(store.folder / "quarantine" / last.path.name)
    numbers = [int(info.id[:6]) for info in (last, store.save(2, content(2)))]
    assert numbers == [2, 3]


def test_load_of_what_is_not_there(store):
    with pytest.raises(BadInput, match="holds no checkpoint"):
        store.load()
    assert store.list() == ()
    store.save(3, content(3))
    with pytest.raises(BadInput, match=r"step 4 .*Steps there: 3"):
        store.load(4)
    with pytest.raises(BadInput, match="at least 0"):
        store.save(-1, {})
    with pytest.raises(BadInput, match="whole number"):
        store.save(True, {})
    with pytest.raises(BadInput, match="no tensors"):
        store.save(4, {}, facts={"t": torch.ones(1)})
    with pytest.raises(BadInput, match=r"state\['f'\] is a function"):
        store.save(4, {"f": len})
    assert [i.step for i in store.list()] == [3]
    assert not list((store.folder / ".staging").iterdir())


def test_oversized_json_is_refused_at_save(store, monkeypatch):
    monkeypatch.setattr("dynaxx.checkpoints.store.SIZE_CAP", 100)
    with pytest.raises(BadInput, match="tensors or arrays"):
        store.save(1, {"losses": [0.1] * 100})


@pytest.mark.parametrize("file", FILES)
def test_every_flipped_bit_is_found(store, file):
    info = store.save(1, content(1))
    good = (info.path / file).read_bytes()
    draw = random.Random(0)
    positions = {0, len(good) - 1, *(draw.randrange(len(good)) for _ in range(200))}
    for position in positions:
        flip(info.path / file, position, draw.randrange(8))
        with pytest.raises(CorruptData, match=file.replace(".", r"\.")):
            store.load(info)
        with pytest.raises(CorruptData):
            store.verify(info)
        (info.path / file).write_bytes(good)
    store.verify(info)


@pytest.mark.parametrize("file", FILES)
def test_every_truncation_and_extension_is_found_without_reading_the_data(store, file):
    info = store.save(1, content(1))
    good = (info.path / file).read_bytes()
    for size in {*(len(good) * k // 16 for k in range(16)), len(good) - 1}:
        (info.path / file).write_bytes(good[:size])
        with pytest.raises(CorruptData):
            store.verify(info, deep=False)
        with pytest.raises(CorruptData):
            store.load(1)
    (info.path / file).write_bytes(good + b"\n")
    with pytest.raises(CorruptData):
        store.verify(info, deep=False)
    (info.path / file).unlink()
    with pytest.raises(CorruptData, match="missing"):
        store.load(1)


@pytest.mark.parametrize("file", FILES)
def test_files_swapped_between_checkpoints_are_found(store, file):
    a, b = (store.save(step, content(step)) for step in (1, 2))
    assert (a.path / TENSORS).stat().st_size == (b.path / TENSORS).stat().st_size
    (a.path / file).rename(store.folder / "aside")
    (b.path / file).rename(a.path / file)
    (store.folder / "aside").rename(b.path / file)
    for info in (a, b):
        with pytest.raises(CorruptData):
            store.load(info)


def test_renamed_checkpoint_is_found(store):
    info = store.save(1, content(1))
    other = info.path.with_name(info.path.name.replace("0000000001", "0000000009"))
    info.path.rename(other)
    with pytest.raises(CorruptData, match="belongs to"):
        store.load(9)


def test_corrupted_tensor_is_named(store):
    info = store.save(1, content(1))
    flip(info.path / TENSORS, -1)
    with pytest.raises(CorruptData, match=r"tensors\.safetensors.*'weight'"):
        store.verify(1)


def test_latest_falls_back_over_corrupted_ones(store, identical):
    infos = [store.save(step, content(step)) for step in (1, 2, 3)]
    flip(infos[2].path / TENSORS, 900)
    (infos[1].path / NAME).unlink()
    with pytest.warns(DynaxxWarning) as caught:
        state, info = store.load()
    assert identical(state, content(1))
    assert info.passed_over == (infos[2].path.name, infos[1].path.name)
    assert [name in str(w.message) for name, w in zip(info.passed_over, caught, strict=True)] == [True, True]
    assert sorted(p.name for p in (store.folder / "quarantine").iterdir()) == sorted(info.passed_over)
    assert [i.step for i in store.list()] == [1]
    assert store.load()[1].passed_over == ()


def test_corrupted_one_asked_for_by_name_stays_where_it_is(store):
    info = store.save(1, content(1))
    flip(info.path / STATE, 3)
    with pytest.raises(CorruptData, match=r"state\.json"):
        store.load(1)
    assert info.path.exists()


def test_all_corrupted(store):
    info = store.save(1, content(1))
    flip(info.path / STATE, 3)
    with pytest.warns(DynaxxWarning), pytest.raises(CorruptData, match=info.path.name):
        store.load()


def test_list_names_what_it_cannot_list(store):
    a, b = (store.save(step, content(step)) for step in (1, 2))
    flip(a.path / NAME, 10)
    with pytest.warns(DynaxxWarning, match=a.path.name):
        assert [i.id for i in store.list()] == [b.id]


def reseal(path, change):
    """A manifest that is consistent with itself, as somebody hostile would make it."""
    body = json.loads(path.read_bytes())
    del body["xxh3_128"]
    change(body)
    text = json.dumps(body).removesuffix("}").encode()
    path.write_bytes(text + _SEAL.format(digest(text)).encode())


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["files"].update({"../../secret": m["files"][STATE]}),
        lambda m: m["files"].pop(STATE),
        lambda m: m.pop("tensors"),
        lambda m: m["tensors"]["weight"].update(shape=[1 << 50]),
        lambda m: m["tensors"]["weight"].update(shape=[-32, -8]),
        lambda m: m["tensors"]["weight"].update(dtype="object"),
        lambda m: m["tensors"].pop("weight"),
        lambda m: m["files"][TENSORS].update(xxh3_128="0" * 32),
        lambda m: m.update(step="one"),
        lambda m: m.update(step=2),
        lambda m: m.update(facts={"$pickle": "x"}),
    ],
)
def test_hostile_manifests_are_refused(store, change):
    info = store.save(1, content(1))
    reseal(info.path / NAME, lambda m: None)
    store.verify(info)
    reseal(info.path / NAME, change)
    with pytest.raises(CorruptData):
        store.load(info)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"{", b"\xff"], ids=["nested", "cut", "not text"])
def test_hostile_trees_are_refused(store, text):
    info = store.save(1, content(1))
    (info.path / STATE).write_bytes(text)
    reseal(info.path / NAME, lambda m: m["files"].update({STATE: {"bytes": len(text), "xxh3_128": digest(text)}}))
    with pytest.raises(CorruptData, match="does not follow the format"):
        store.load(info)


def test_links_are_not_followed(store, tmp_path):
    info = store.save(1, content(1))
    (info.path / STATE).rename(tmp_path / "elsewhere")
    (info.path / STATE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptData, match="not a regular file"):
        store.load(info)


def test_later_format_is_not_taken_for_corruption(store):
    info = store.save(1, content(1))
    reseal(info.path / NAME, lambda m: m.update(format=2))
    with pytest.raises(BadInput, match="Update Dynaxx"):
        store.load()
    assert info.path.exists()


def test_unreadable_medium_is_corruption(store, monkeypatch):
    infos = [store.save(step, content(step)) for step in (1, 2)]
    real_read = store_module.read_capped

    def broken(file, *args):
        if infos[1].path.name in str(file):
            raise OSError(5, "Input/output error")
        return real_read(file, *args)

    monkeypatch.setattr(store_module, "read_capped", broken)
    with pytest.warns(DynaxxWarning, match="Input/output error"):
        assert store.load()[1].step == 1


def test_prune(store):
    for step in range(6):
        store.save(step, content(step))
    gone = store.prune(keep=2)
    assert [int(name[:10]) for name in gone] == [0, 1, 2, 3]
    assert [i.step for i in store.list()] == [4, 5]
    assert not list((store.folder / "trash").iterdir())
    assert store.prune(keep=2) == ()
    with pytest.raises(BadInput, match="at least 1"):
        store.prune(keep=0)


def test_prune_leaves_all_when_none_of_the_kept_is_valid(store):
    infos = [store.save(step, content(step)) for step in range(4)]
    for info in infos[2:]:
        flip(info.path / TENSORS, -1)
    with pytest.warns(DynaxxWarning, match="Nothing is pruned"):
        assert store.prune(keep=2) == ()
    assert store.prune(keep=3) == (infos[0].path.name,)
    with pytest.warns(DynaxxWarning):
        assert store.load()[1].step == 1


def test_prune_reads_one_checkpoint_in_keep(store, monkeypatch):
    read = []
    check = CheckpointStore._check

    def counted(self, path, deep):
        read.extend([path] * deep)
        check(self, path, deep)

    monkeypatch.setattr(CheckpointStore, "_check", counted)
    for step in range(12):
        store.save(step, content(step))
        store.prune(keep=3)
    assert [int(path.name[:10]) for path in read] == [3, 6, 9]


def test_prune_finishes_what_a_kill_left_in_the_trash(store):
    info = store.save(1, content(1))
    (store.folder / "trash").mkdir()
    shutil.copytree(info.path, store.folder / "trash" / "0000000000-000000-00000000")
    store.prune()
    assert not list((store.folder / "trash").iterdir())


def test_staging_of_the_dead_goes_and_of_the_living_stays(store, monkeypatch):
    store.save(1, content(1))
    aside = store.folder / ".staging"
    mine = aside / staging_name("x")
    pid = os.fork()
    if pid == 0:
        (aside / staging_name("y")).mkdir()
        os._exit(0)
    mine.mkdir()
    time.sleep(0.05)
    (dead,) = [p for p in aside.iterdir() if p.name.startswith("y")]
    assert is_orphan(dead)  # a zombie yet
    os.waitpid(pid, 0)
    assert is_orphan(dead)
    assert not is_orphan(mine)
    reused = aside / (mine.name.rpartition(".")[0] + ".1000")  # our process id, but a process of 1970
    reused.mkdir()
    store.prune()
    assert list(aside.iterdir()) == [mine]
    monkeypatch.setattr(staging_module, "_machine", lambda: "another")
    assert not is_orphan(mine)
    os.utime(mine, (1e9, 1e9))
    assert is_orphan(mine)


def test_everything_is_on_disk_before_it_is_seen(store, monkeypatch):
    """What is not synced may vanish with the power: the files first, their folder, the rename, its folder."""
    store.folder.mkdir(parents=True)
    (store.folder / ".staging").mkdir()
    calls = []
    sync, rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: (calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))), sync(fd))
    )
    monkeypatch.setattr("pathlib.os.rename", lambda a, b: (calls.append("rename"), rename(a, b)))
    info = store.save(1, content(1))
    aside = calls[3]
    assert aside.startswith(info.path.name)
    assert calls == [TENSORS, STATE, NAME, aside, "rename", "checkpoints"]


def test_new_folders_are_synced_too(store, monkeypatch):
    calls = []
    sync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))), sync(fd))
    )
    store.save(1, content(1))
    assert calls[:2] == ["run", "checkpoints"]


@pytest.mark.parametrize("nth", range(6))
def test_failing_disk_leaves_the_earlier_checkpoint(store, monkeypatch, identical, nth):
    store.save(1, content(1))
    sync, count = os.fsync, iter(range(100))

    def failing(fd):
        if next(count) == nth:
            raise OSError(28, "No space left on device")
        sync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        if nth < 5:
            with pytest.raises(NotSaved, match="step 2 was not saved") as error:
                store.save(2, content(2))
            assert error.value.errno == 28
        else:
            store.save(2, content(2))
    assert not list((store.folder / ".staging").iterdir())
    for info in store.list():
        assert identical(store.load(info)[0], content(info.step))
    store.save(3, content(3))
    assert store.load()[1].step == 3


@pytest.mark.parametrize("limit", [1, 700, 5_000])
def test_file_size_limit(store, identical, limit):
    """A real EFBIG from the kernel, in a child because the limit cannot be lifted again."""
    store.save(1, content(1))
    big = {"weight": torch.zeros(4000), "text": "x" * 100}
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            store.save(2, big)
        except NotSaved as error:
            os._exit(0 if error.errno == 27 else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not list((store.folder / ".staging").iterdir())
    state, info = store.load()
    assert info.step == 1
    assert identical(state, content(1))
    store.save(2, big)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(NotSaved, match="make the folder writable"):
        CheckpointStore(tmp_path / "run" / "checkpoints").save(1, content(1))


def test_saving_draws_no_random_number(store):
    state = random.getstate(), torch.get_rng_state()
    store.save(1, content(1))
    store.load()
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])


def test_two_writers_do_not_meet(store, identical):
    other = CheckpointStore(store.folder)
    for step in range(3):
        store.save(step, content(step))
        other.save(step, content(step + 100))
    assert len(store.list()) == 6
    assert all(
        identical(store.load(i)[0]["note"], f"step {i.step + 100 * (k % 2)}") for k, i in enumerate(store.list())
    )
