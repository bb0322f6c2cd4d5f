"""Disks that fill up, refuse or vanish under a process that is killed or forks: training goes on, and nothing lies."""

import errno
import os
import random
import resource
import signal
import struct
import time
import traceback
import warnings

import numpy as np
import pytest

from dynaxx.core.records import Axis, Column
from dynaxx.errors import DynaxxWarning
from dynaxx.runlog import LogWriter, appender, disk, events, open_run, spool

X = Column(name="x", dtype="float64")
WIDE = Column(name="wide", dtype="float64", axis=Axis(name="layer", labels=tuple(f"l{n}" for n in range(100))))


def fork(action):
    """Run something in a forked child, which then exits; its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which is the point
        child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def succeeds(child):
    return os.waitpid(child, 0)[1] == 0


def log_rows(log, first, count, column=WIDE):
    steps = np.arange(first, first + count)
    values = np.repeat(1.0 * steps[:, None], 100, axis=1) if column is WIDE else 1.0 * steps
    log.rows("s", steps, [(column, values, None)])


def check(folder, steps, column=WIDE):
    """The run holds exactly these steps, with the values of `log_rows`."""
    view = open_run(folder)
    assert view.steps.tolist() == list(steps)
    assert view.problems == ()
    array = view[column.name]
    assert (array.values == (array.steps[:, None] if column is WIDE else array.steps)).all()
    return view


def test_a_file_that_may_not_grow_costs_nothing_once_it_may(tmp_path, monkeypatch):
    """The kernel's own refusal half-way through a write: files of at most 100 kB, in blocks of 51 kB."""
    monkeypatch.setattr(spool, "PAUSE", 0.01)

    def child():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        log = LogWriter(tmp_path / "run", manifest={})
        log_rows(log, 1, 64)
        log_rows(log, 65, 32)
        assert log.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        log_rows(log, 97, 128)  # 102 kB: refused in the segment that is open and in any new one
        with pytest.warns(DynaxxWarning, match="File too large"):
            assert not log.flush()
        log_rows(log, 225, 8)
        assert not log.flush()
        check(tmp_path / "run", range(1, 97))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert log.flush()
        assert log.lost == 0
        log.close()
        view = check(tmp_path / "run", range(1, 233))
        assert view.attempts[0].abandoned == ("s-0001-0001.arrows",)
        assert [note.file for note in view.notes] == ["data/s-0001-0001.arrows"]

    assert succeeds(fork(child))


class Disk:
    """Writes at most `room` bytes more through `write_all`, the last of them torn."""

    def __init__(self, monkeypatch, room):
        self.room = room
        for module in (appender, events, disk):
            monkeypatch.setattr(module, "write_all", self.write)

    def write(self, descriptor, data):
        fits = bytes(data)[: max(0, self.room)]
        self.room -= len(fits)
        os.write(descriptor, fits)
        if len(fits) < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("room", [0, 10, 400, 500, 1500, 1900, 3000, 5000, 9000])
def test_a_full_disk_wherever_it_strikes(tmp_path, monkeypatch, room):
    monkeypatch.setattr(spool, "PAUSE", 0.01)
    full = Disk(monkeypatch, room)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        log = LogWriter(tmp_path / "run", manifest={"name": "x"})
        for step in range(1, 11):
            log_rows(log, step, 1)
            log.event("x", step=step)
        assert not log.flush()
        time.sleep(0.05)
        full.room = 10**9
        assert log.flush()
        log_rows(log, 11, 1)
        log.close()
    assert [w.category for w in caught] == [DynaxxWarning]
    assert log.lost == 0
    view = check(tmp_path / "run", range(1, 12))
    assert [event["step"] for event in view.events()] == list(range(1, 11))
    assert view.manifest == {"name": "x", "format": 1}
    assert view.attempts[0].status == "finished"
    assert len(list((tmp_path / "run" / "data").glob("*.arrows"))) <= 2


def test_what_does_not_fit_while_the_disk_is_full_is_counted_in_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "PAUSE", 0.01)
    full = Disk(monkeypatch, 10**9)
    monkeypatch.setattr("dynaxx.runlog.writer.CAPACITY", 3000)
    log = LogWriter(tmp_path / "run", manifest={})
    log_rows(log, 1, 1)
    assert log.flush()
    full.room = 0
    with pytest.warns(DynaxxWarning):  # noqa: PT031
        for step in range(2, 10):  # three fit into what may wait
            log_rows(log, step, 1)
    full.room = 10**9
    assert log.flush()
    assert log.lost == 5
    assert log.flush()
    view = check(tmp_path / "run", range(1, 5))
    (event,) = view.events("lost")
    assert (event["rows"], event["attempt"]) == (5, 1)
    assert view.attempts[0].lost == 5
    log.close()


def test_a_disk_that_stays_full_until_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "PAUSE", 0.01)
    full = Disk(monkeypatch, 10**9)
    log = LogWriter(tmp_path / "run", manifest={})
    log_rows(log, 1, 4)
    assert log.flush()
    full.room = 50
    log_rows(log, 5, 7)
    with pytest.warns(DynaxxWarning, match="No space left"):
        log.close()
    assert log.lost == 7
    check(tmp_path / "run", range(1, 5))


def test_a_failed_sync_is_said_and_its_segment_given_up(tmp_path, monkeypatch):
    log = LogWriter(tmp_path / "run", manifest={})
    log_rows(log, 1, 4)
    assert log.flush(fsync=True)

    def refuse(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.warns(DynaxxWarning, match="Input/output"):
        assert not log.flush(fsync=True)
    monkeypatch.undo()
    log_rows(log, 5, 4)
    log.close()
    view = check(tmp_path / "run", range(1, 9))
    assert view.attempts[0].abandoned == ("s-0001-0001.arrows",)
    assert len(list((tmp_path / "run" / "data").glob("*.arrows"))) == 2


def test_the_caller_never_waits_for_the_disk(tmp_path, monkeypatch):
    log = LogWriter(tmp_path / "run", manifest={})
    original = disk.write_all
    monkeypatch.setattr(appender, "write_all", lambda *a: (time.sleep(0.3), original(*a)))
    start = time.perf_counter()
    for step in range(1, 11):
        log_rows(log, step, 1)
    assert time.perf_counter() - start < 0.25
    monkeypatch.undo()
    log.close()
    check(tmp_path / "run", range(1, 11))


def killed_once(folder, generator, attempt, early):
    """A process that logs and is killed at a random instant, of its start or later; whether it acknowledged a flush."""
    read, write = os.pipe()

    def child():
        log = LogWriter(folder, manifest={}, resume=True)
        step = 0
        while True:
            count = step % 5 + 1
            log_rows(log, step + 1, count)
            step += count
            log.event("x", step=step)
            if step % 3 == 0:
                assert log.flush()
                os.write(write, struct.pack("<q", step))

    process = fork(child)
    os.close(write)
    said = b"" if early else os.read(read, 8)
    time.sleep(generator.uniform(0, 0.03))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    with os.fdopen(read, "rb") as pipe:
        said += pipe.read()
    acknowledged = struct.unpack("<q", said[-8:])[0] if said else 0
    if not list(folder.glob("attempts/*.json")):  # killed before anything was there
        assert not acknowledged
        return False
    view = open_run(folder)
    assert view.problems == ()
    reached = int(view.steps[-1]) if len(view.steps) else 0
    if len(view.attempts) and view.attempts[-1].n == attempt and acknowledged:
        mine = view.steps[view.attempt_of_steps == attempt]
        assert mine.tolist()[:acknowledged] == list(range(1, acknowledged + 1))
        assert max(e["step"] for e in view.events("x") if e["attempt"] == attempt) >= acknowledged
    if len(view.steps):
        array = view["wide"]
        assert array.steps.tolist() == list(range(1, reached + 1))
        assert (array.values == array.steps[:, None]).all()
    return acknowledged > 0


@pytest.mark.parametrize("kills", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_flushed_rows_survive_a_kill_at_any_instant(tmp_path, kills):
    generator, acknowledged = random.Random(kills), 0
    for n in range(kills):
        folder = tmp_path / f"run{n // 4}"  # four attempts in each
        last = max((int(p.stem) for p in folder.glob("attempts/*.json")), default=0)
        acknowledged += killed_once(folder, generator, last + 1, early=n % 4 == 1)
    assert acknowledged >= kills / 2  # else the kills came too early to show anything


def test_a_forked_child_writes_nothing(tmp_path):
    """As a data loader's workers do: the child holds a copy of the log, which it may use, close and forget."""
    log = LogWriter(tmp_path / "run", manifest={})
    log_rows(log, 1, 5, X)

    def child():
        log_rows(log, 100, 5, X)
        log.event("x", step=100)
        log.update_manifest(child=True)
        assert not log.flush(timeout=5)
        open_run(tmp_path / "run")
        log.close("from the child")

    assert succeeds(fork(child))
    log_rows(log, 6, 5, X)
    log.close()
    view = check(tmp_path / "run", range(1, 11), X)
    assert view.events() == []
    assert view.manifest == {"format": 1}
    assert [a.status for a in view.attempts] == ["finished"]


def test_a_fork_in_the_middle_of_writing_locks_nobody(tmp_path):
    log = LogWriter(tmp_path / "run", manifest={})
    for n in range(20):
        for step in range(50):
            log_rows(log, n * 50 + step + 1, 1, X)
        assert succeeds(fork(lambda: (log_rows(log, 9999, 1, X), log.close())))
    log.close()
    check(tmp_path / "run", range(1, 1001), X)


def test_a_replaced_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    disk.replace_file(path, b"one")
    Disk(monkeypatch, 2)
    with pytest.raises(OSError, match="No space"):
        disk.replace_file(path, b"two")
    assert path.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
