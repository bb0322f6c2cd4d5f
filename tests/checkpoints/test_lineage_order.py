"""Which checkpoint is the latest: of the line that training is on, and not one that it went back past."""

import threading

import pytest
import torch

from dynaxx.checkpoints import CheckpointStore
from dynaxx.checkpoints.manifest import TENSORS, load_manifest
from dynaxx.errors import BadInput, DynaxxWarning


def steps(infos):
    return [info.step for info in infos]


def run(store, *steps):
    return [store.save(step, {"step": step, "number": len(store.list())}) for step in steps]


def test_after_a_rollback_the_new_line_is_the_latest(store):
    old = run(store, 100, 200, 300)
    store.continue_from(old[0])
    assert steps(store.list()) == [100, 200, 300], "until the new line has something to show"
    assert store.load()[1].step == 300
    new = run(store, 150)
    assert steps(store.list()) == [200, 300, 100, 150]
    assert store.load()[1].id == new[0].id
    assert new[0].origin.checkpoint == old[0].path.name
    run(store, 200)
    assert steps(store.list()) == [200, 300, 100, 150, 200]
    assert store.load(200)[1].id == store.load()[1].id, "the last save of a step is the new line's"


def test_another_process_knows_and_goes_on(store):
    old = run(store, 100, 200, 300)
    store.continue_from(old[0])
    run(store, 150, 180)
    later = CheckpointStore(store.folder)
    _, info = later.load()
    assert info.step == 180
    later.continue_from(info)
    assert run(later, 190)[0].origin == later.load()[1].origin
    assert [len(later.prune(keep=keep)) for keep in (4, 2, 1)] == [2, 2, 1], "what was left behind goes first"
    assert steps(later.list()) == [190]


def test_even_when_the_line_s_first_checkpoints_are_gone(store):
    old = run(store, 100, 200, 300)
    store.continue_from(old[0])
    first = run(store, 110)
    later = CheckpointStore(store.folder)
    later.continue_from(later.load()[1])
    run(later, 120)
    later.remove([old[0], *first])
    assert CheckpointStore(store.folder).load()[1].step == 120


def test_the_order_of_many_takes_no_reading(store, monkeypatch):
    read = []
    monkeypatch.setattr("dynaxx.checkpoints.store.load_manifest", lambda path: read.append(path) or load_manifest(path))
    monkeypatch.setattr(
        "dynaxx.checkpoints.manifest.load_manifest", lambda path: read.append(path) or load_manifest(path)
    )
    old = run(store, 100, 200, 300)
    read.clear()
    assert store.load()[1].step == 300
    assert CheckpointStore(store.folder).load()[1].step == 300
    assert len(read) == 2, "the two that were loaded"
    store.continue_from(old[1])
    new = run(store, 250)
    read.clear()
    assert CheckpointStore(store.folder).load()[1].step == 250
    assert read == [new[0].path] * 2, "once for its origin"


def test_twice_back_to_the_same(store):
    old = run(store, 100, 200)
    store.continue_from(old[0])
    run(store, 150, 250)
    store.continue_from(old[0])
    run(store, 140)
    assert steps(store.list()) == [150, 200, 250, 100, 140]


def test_corrupted_ones_of_the_line_fall_back_along_it(store):
    old = run(store, 100, 200)
    store.continue_from(old[0])
    new = run(store, 150, 160)
    (new[1].path / TENSORS).unlink()
    with pytest.warns(DynaxxWarning, match="passed over"):
        assert store.load()[1].step == 150
    (new[0].path / TENSORS).unlink()
    with pytest.warns(DynaxxWarning, match="passed over"):
        assert store.load()[1].step == 100, "and not 200, which is later and was left behind"


def test_plain_resume_leaves_nothing_behind(store):
    run(store, 1, 2)
    later = CheckpointStore(store.folder)
    later.continue_from(later.load()[1])
    assert run(later, 3)[0].origin is None
    assert steps(later.list()) == [1, 2, 3]


def test_saves_under_way_are_of_the_line_that_ends(store, monkeypatch):
    commit, opened = CheckpointStore._commit, threading.Event()
    monkeypatch.setattr(CheckpointStore, "_commit", lambda *args: opened.wait(30) and commit(*args))
    opened.set()
    (first,) = run(store, 100)
    opened.clear()
    store.save_async(200, {"step": 200})
    threading.Timer(0.1, opened.set).start()
    store.continue_from(first)
    run(store, 150)
    assert steps(store.list()) == [200, 100, 150]


def test_what_brings_the_training_down_is_left_for_last(store):
    run(store, 1, 2)
    for _ in range(3):
        assert CheckpointStore(store.folder).load(tries=3)[1].step == 2
    with pytest.warns(DynaxxWarning, match=r"went on from 0000000002-\S+ 3 times without reaching a save"):
        assert store.load(tries=3)[1].step == 1
    assert store.load()[1].step == 2, "who only reads is not bothered"
    run(store, 3)
    assert store.load(tries=3)[1].step == 3
    assert len(list((store.folder / "attempts").iterdir())) == 1
    store.remove(store.list()[1:])
    assert store.load(tries=1)[1].step == 1
    assert store.load(tries=1)[1].step == 1, "there is no other"


def test_parts_of_a_state(store):
    shared = torch.ones(3)
    state = {"a": shared, "b": {"w": shared, "n": 1}, "c": [torch.zeros(2)]}
    info = store.save(1, state)
    for keys in (("b",), ("c", "a"), ()):
        part, found = store.load(only=keys)
        assert list(part) == list(keys)
        assert found.id == info.id
    assert torch.equal(store.load(only=["b"])[0]["b"]["w"], shared)
    data = bytearray((info.path / TENSORS).read_bytes())
    data[-1] ^= 1  # of c, which is last
    (info.path / TENSORS).write_bytes(data)
    store.load(1, only=["b"])
    with pytest.warns(DynaxxWarning), pytest.raises(Exception, match="corrupted"):
        store.load(only=["c"])
    store.save(2, state)
    with pytest.raises(BadInput, match=r"holds no x, \$dict. There are: a, b, c"):
        store.load(2, only=["x", "$dict"])
    with pytest.raises(BadInput, match=r"write \('a',\)"):
        store.load(2, only="a")
    with pytest.raises(BadInput, match="at least 1"):
        store.load(tries=0)


def test_remove(store):
    infos = run(store, 1, 2, 3)
    assert store.remove([infos[0], infos[2]]) == (infos[0].path.name, infos[2].path.name)
    assert store.remove([infos[0]]) == ()
    assert steps(store.list()) == [2]
    assert not list((store.folder / "trash").iterdir())
