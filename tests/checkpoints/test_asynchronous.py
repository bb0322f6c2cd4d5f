"""What is saved is the state at the call, whatever training does next; acknowledged is only what is on disk."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from dynaxx.checkpoints import CheckpointStore
from dynaxx.checkpoints import arena as arena_module
from dynaxx.errors import BadInput, DynaxxWarning, NotSaved


def content(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "weight": torch.randn(32, 8, generator=generator),
        "moments": [torch.randn(3, 5, generator=generator, dtype=torch.float64).t(), torch.ones(3, dtype=torch.bool)],
        "scalar": torch.tensor(float(step)),
        "empty": torch.empty(0, 4),
        "odd": torch.arange(7, dtype=torch.uint8),
        "complex": torch.randn(3, generator=generator, dtype=torch.complex64),
        "step": step,
        "history": [step],
    }


@pytest.fixture
def gate(monkeypatch):
    """Commits wait until it is opened."""
    opened = threading.Event()
    commit = CheckpointStore._commit

    def held(self, *args):
        assert opened.wait(60)
        return commit(self, *args)

    monkeypatch.setattr(CheckpointStore, "_commit", held)
    yield opened
    opened.set()


def test_training_may_step_at_once(store, gate, identical):
    state, facts = content(1), {"losses": [1.0]}
    pending = store.save_async(1, state, facts=facts)
    for part in (state["weight"], *state["moments"], state["scalar"], state["odd"], state["complex"]):
        part.zero_()
    state["history"].append("later")
    state["step"] = 2
    facts["losses"].append(2.0)
    assert not pending.done
    assert store.list() == ()
    with pytest.raises(TimeoutError):
        pending.result(timeout=0.01)
    gate.set()
    info = pending.result()
    assert pending.done
    assert identical(store.load(info)[0], content(1))
    assert info.facts == {"losses": [1.0]}


def test_memory_is_used_again_and_every_state_is_right(store, identical):
    def memories():
        background = store._background
        free = [background._free.get() for _ in range(2)]
        for arena in free:
            background._free.put(arena)
        return {arena._memory.data_ptr() for arena in free}

    for step in range(2):
        store.save_async(step, content(step))
    assert store.flush()
    held = memories()
    pending = [store.save_async(step, content(step)) for step in range(2, 8)]
    infos = [save.result() for save in pending]
    assert memories() == held
    assert [info.step for info in infos] == list(range(2, 8))
    assert [int(info.id[:6]) for info in infos] == list(range(3, 9))
    assert all(identical(store.load(info)[0], content(info.step)) for info in infos)


def test_larger_state_takes_larger_memory(store, identical):
    for step, size in enumerate((10, 1000, 10, 3000)):
        state = {"weight": torch.full((size,), float(step))}
        assert identical(store.load(store.save_async(step, state).result())[0], state)


def test_third_save_waits_for_the_first(store, gate):
    first, second = (store.save_async(step, content(step)) for step in (1, 2))
    assert (first.stalled, second.stalled, store.stalls) == (0.0, 0.0, (0, 0.0))
    threading.Timer(0.3, gate.set).start()
    third = store.save_async(3, content(3))
    assert first.done
    assert 0.2 < third.stalled < 30
    assert store.stalls == (1, third.stalled)
    assert third.result().step == 3


def test_patience_ends(store, gate):
    for step in (1, 2):
        store.save_async(step, content(step))
    lost = store.save_async(3, content(3), patience=0.05)
    assert lost.done
    with pytest.raises(NotSaved, match=r"step 3 was not saved: 2 saves before it .* after 0.05 s"):
        lost.result()
    gate.set()
    assert store.flush()
    assert [info.step for info in store.list()] == [1, 2]
    assert store.save_async(4, content(4)).result().step == 4


def test_failure_is_in_the_result(store, monkeypatch, identical):
    store.save(1, content(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        pending = store.save_async(2, content(2))
        with pytest.raises(NotSaved, match="step 2 was not saved") as error:
            pending.result()
    assert error.value.errno == 28
    assert not list((store.folder / ".staging").iterdir())
    assert store.flush()  # asked for: no warning
    assert identical(store.load()[0], content(1))
    assert store.save_async(3, content(3)).result().step == 3


def test_whatever_fails_is_a_checkpoint_that_was_not_saved(store, monkeypatch):
    monkeypatch.setattr(CheckpointStore, "_commit", lambda *args: 1 // 0)
    pending = store.save_async(2, content(2))
    with pytest.raises(NotSaved, match=r"step 2 was not saved \(ZeroDivisionError") as error:
        pending.result()
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_failure_that_nobody_asks_for_is_said_once(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        store.save_async(2, content(2))
        with pytest.warns(DynaxxWarning, match="training goes on.*step 2"):
            store.flush()
    assert store.flush()


def test_bad_input_is_told_at_once(store):
    with pytest.raises(BadInput, match="at least 0"):
        store.save_async(-1, {})
    with pytest.raises(BadInput, match=r"state\['f'\] is a function"):
        store.save_async(1, {"f": len})
    with pytest.raises(BadInput, match="no tensors"):
        store.save_async(1, {}, facts={"t": torch.ones(1)})
    for patience in (-1, float("nan")):
        with pytest.raises(BadInput, match="number of seconds"):
            store.save_async(1, {}, patience=patience)
    assert store.list() == ()


def test_a_save_waits_for_those_before(store, gate):
    threading.Timer(0.2, gate.set).start()
    store.save_async(1, content(1))
    assert int(store.save(1, content(2)).id[:6]) == 2
    assert store.load()[0]["step"] == 2


def test_without_memory_it_is_written_at_once(store, monkeypatch, identical):
    def full(self, size, pinned):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(arena_module.Arena, "_reserve", full)
    pending = store.save_async(1, content(1))
    assert pending.done
    assert identical(store.load(pending.result())[0], content(1))


def test_interrupted_copy_costs_no_memory(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(arena_module.Arena, "hold", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        for step in range(3):
            with pytest.raises(KeyboardInterrupt):
                store.save_async(step, content(step))
    assert store.save_async(3, content(3), patience=0.0).result().step == 3
    assert store.stalls == (0, 0.0)


def test_close_gives_memory_back_and_the_store_goes_on(store):
    store.save_async(1, content(1))
    arena = store._background._free.get()
    assert arena._memory.numel() > 0 or store._background._free.get()._memory.numel() > 0
    store.close()
    assert [info.step for info in store.list()] == [1]
    assert store._background._free.get()._memory.numel() == 0
    store.close()
    assert store.save_async(2, content(2)).result().step == 2


def test_context_of_the_caller_does_not_stick(store, identical):
    state = {"weight": torch.ones(3)}
    with torch.inference_mode():
        store.save_async(1, state)
        store.save_async(2, {"weight": torch.ones(3) * 2})
    for step in (3, 4):
        assert identical(store.load(store.save_async(step, state).result())[0], state)
    with torch.device("meta"):
        info = store.save_async(5, {"weight": torch.full((9999,), 5.0, device="cpu")}).result()
        assert store.load(info)[0]["weight"][-1].item() == 5.0


def test_nothing_random_is_drawn(store):
    before = torch.get_rng_state()
    store.save_async(1, content(1)).result()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # newer Pythons warn of threads
def test_forked_child_saves_with_a_thread_of_its_own(store, gate, identical):
    pending = store.save_async(1, content(1))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with pytest.raises(NotSaved, match="belongs to process"):
                pending.result()
            gate.set()
            assert store.flush()
            assert store.save_async(2, content(2)).result().step == 2
            store.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    gate.set()
    assert pending.result().step == 1
    assert {info.step for info in store.list()} == {1, 2}


EXITING = """
import atexit, os, sys, time, torch
from dynaxx.checkpoints import CheckpointStore
store = CheckpointStore(sys.argv[1])
sync = os.fsync
os.fsync = lambda fd: (time.sleep(0.05), sync(fd))
store.save_async(1, {"weight": torch.ones(1000)})
if sys.argv[2] == "late":
    atexit.register(lambda: store.save_async(2, {"weight": torch.ones(1000)}))
elif sys.argv[2] == "raise":
    raise SystemExit(3)
"""


@pytest.mark.parametrize(("how", "code", "steps"), [("end", 0, [1]), ("raise", 3, [1]), ("late", 0, [1, 2])])
def test_what_is_under_way_at_exit_is_finished(tmp_path, how, code, steps):
    command = [sys.executable, "-W", "error", "-c", EXITING, str(tmp_path / "c"), how]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (code, b"")
    store = CheckpointStore(tmp_path / "c")
    assert [info.step for info in store.list()] == steps
    store.load()


def test_it_blocks_for_the_copy_alone(store, monkeypatch):
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (time.sleep(0.2), sync(fd)))
    began = time.perf_counter()
    pending = store.save_async(1, content(1))
    assert time.perf_counter() - began < 0.2
    assert repr(pending) == "<PendingSave of step 1, under way>"
    pending.result()
    assert time.perf_counter() - began > 1.0  # five syncs
