"""A process that saves is killed at any instant: nothing torn is seen, nothing acknowledged is lost."""

import os
import random
import signal
import sys
import time
import warnings

import pytest
import torch

from dynaxx.checkpoints import CheckpointStore


def content(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"weight": torch.randn(64, 64, generator=generator)},
        "moments": [torch.randn(1000, generator=generator, dtype=torch.float64) for _ in range(3)],
        "step": step,
        "history": [step / k for k in range(1, 100)],
    }


def fork():
    with warnings.catch_warnings():  # newer Pythons warn of threads; the child uses none of the parent's
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_turn(store, steps):
    """Saves; yields each step once it is acknowledged."""
    for step in steps:
        store.save(step, content(step), facts={"twice": 2 * step})
        yield step


def overlapping(store, steps):
    """The same, two under way at a time, each state overwritten as soon as its copy is taken."""
    pending = []
    for step in steps:
        state = content(step)
        pending.append(store.save_async(step, state, facts={"twice": 2 * step}))
        for tensor in (state["model"]["weight"], *state["moments"]):
            tensor.zero_()
        while len(pending) > 1:
            yield pending.pop(0).result().step
    yield from (save.result().step for save in pending)


def saving_child(folder, first, prepare=lambda: None, last=10**9, keep=3, saves=in_turn):
    """Fork a process that saves and prunes without pause and writes each step to a pipe once it is acknowledged."""
    read, write = os.pipe()
    pid = fork()
    if pid:
        os.close(write)
        return pid, read
    try:
        store = CheckpointStore(folder)
        prepare()
        for step in saves(store, range(first, last)):
            os.write(write, step.to_bytes(8, "little"))
            store.prune(keep)
    finally:
        os._exit(0)


def acknowledged(read):
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    return int.from_bytes(data[-8:], "little") if data else None


def check_after_crash(folder, last, identical):
    """What must hold after every crash; returns the step to go on with."""
    store = CheckpointStore(folder)
    infos = store.list()  # warnings are errors: nothing visible is left out
    for info in infos:
        assert identical(store.load(info)[0], content(info.step))
        assert info.facts == {"twice": 2 * info.step}
    latest = infos[-1].step if infos else -1
    if last is not None:
        assert latest >= last
        assert store.load()[1].step == latest
    store.save(latest + 1, content(latest + 1), facts={"twice": 2 * latest + 2})
    store.prune(keep=3)
    assert 1 <= len(store.list()) <= 3
    for aside in (".staging", "trash"):
        assert not list((folder / aside).glob("*"))
    assert not (folder / "quarantine").exists()
    return latest + 2


def kill_at_random(folder, trials, identical, saves):
    draw = random.Random(17)
    first = in_flight = 0
    for _ in range(trials):
        pid, read = saving_child(folder, first, saves=saves)
        time.sleep(draw.uniform(0.0, 0.08))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        in_flight += any((folder / ".staging").glob("*"))
        last = acknowledged(read)
        first = check_after_crash(folder, first - 1 if last is None and first else last, identical)
    assert in_flight > trials // 4, "the kills must hit saves in progress"


@pytest.mark.parametrize("saves", [in_turn, overlapping])
def test_kill_at_random_instants(tmp_path, identical, saves):
    kill_at_random(tmp_path / "checkpoints", 30, identical, saves)


@pytest.mark.slow
@pytest.mark.parametrize("saves", [in_turn, overlapping])
def test_kill_at_many_random_instants(tmp_path, identical, saves):
    kill_at_random(tmp_path / "checkpoints", 500, identical, saves)


def kill_at_call(n):
    """Let the n-th file operation from now on, or the instant after an fsync, be the last thing this process does."""
    seen = 0

    def count():
        nonlocal seen
        seen += 1
        if seen > n:
            os.kill(os.getpid(), signal.SIGKILL)

    sync = os.fsync

    def fsync(descriptor):
        count()
        sync(descriptor)
        count()

    os.fsync = fsync
    operations = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}
    sys.addaudithook(lambda event, _: count() if event in operations else None)


@pytest.mark.parametrize("saves", [in_turn, overlapping])
def test_kill_at_every_file_operation(tmp_path, identical, saves):
    """Three saves and prunes, killed before each operation in turn until a child comes through."""
    for n in range(1000):
        folder = tmp_path / f"{n}" / "checkpoints"
        pid, read = saving_child(folder, 0, lambda n=n: kill_at_call(n), last=3, keep=1, saves=saves)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        last = acknowledged(read)
        check_after_crash(folder, last, identical)
        if status == 0:
            break
    assert status == 0
    assert last == 2
    assert n > 50
