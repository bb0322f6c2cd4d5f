import math
import os
import random
import resource
import shutil

import pytest
import torch

from dynaxx.checkpoints import CheckpointStore
from dynaxx.checkpoints import staging as staging_module
from dynaxx.checkpoints.manifest import NAME, STATE, TENSORS
from dynaxx.checkpoints.staging import is_orphan, staging_name
from dynaxx.errors import BadInput, DynaxxWarning, NotSaved

FILES = (NAME, STATE, TENSORS)


def content(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "weight": torch.randn(32, 8, generator=generator),
        "moment": torch.randn(32, 8, generator=generator, dtype=torch.float64),
        "step": step,
        "note": f"step {step}",
    }


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
    monkeypatch.setattr("dynaxx.checkpoints.commit.SIZE_CAP", 100)
    with pytest.raises(BadInput, match="tensors or arrays"):
        store.save(1, {"losses": [0.1] * 100})


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


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # newer Pythons warn of threads
def test_staging_of_the_dead_goes_and_of_the_living_stays(store, monkeypatch):
    store.save(1, content(1))
    aside = store.folder / ".staging"
    mine = aside / staging_name("x")
    pid = os.fork()
    if pid == 0:
        (aside / staging_name("y")).mkdir()
        os._exit(0)
    mine.mkdir()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
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


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # newer Pythons warn of threads
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
