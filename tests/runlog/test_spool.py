import os
import signal
import threading
import time
import warnings

import pytest

from dynaxx.runlog import spool as module
from dynaxx.runlog.spool import Spool


@pytest.fixture
def spool(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.01)
    made = Spool(100, after=lambda: None)
    yield made
    made.stop(5)


def test_work_is_done_in_order(spool):
    done = []
    for n in range(100):
        spool.put(lambda n=n: done.append(n))
    assert spool.drain(5)
    assert done == list(range(100))


def test_failed_work_is_done_again_before_what_follows(spool):
    done, tries = [], iter([OSError(28, "full"), OSError(28, "full"), None])

    def work():
        if (error := next(tries)) is not None:
            raise error
        done.append("first")

    spool.put(work, rows=5)
    spool.put(lambda: done.append("second"))
    deadline = time.monotonic() + 5
    while len(done) < 2 and time.monotonic() < deadline:
        spool.drain(1)
    assert done == ["first", "second"]
    assert spool.lost == 0
    assert "full" in spool.trouble


def test_waiting_on_a_disk_that_refuses_ends_with_the_next_try(spool):
    def work():
        raise OSError(28, "full")

    spool.put(work)
    start = time.monotonic()
    assert not spool.drain(30)
    assert time.monotonic() - start < 5


def test_what_does_not_fit_is_dropped_and_counted(spool):
    gate = threading.Event()
    spool.put(gate.wait, size=60, rows=1)
    spool.put(lambda: None, size=60, rows=7)
    spool.put(lambda: None, size=40, rows=1)
    gate.set()
    assert spool.drain(5)
    assert spool.lost == 7
    assert "slower" in spool.trouble


def test_stopping_tries_once_more_and_counts_the_rest():
    spool, done = Spool(100, after=lambda: None), []

    def work():
        raise OSError(5, "gone")

    spool.put(work, rows=3)
    spool.put(lambda: done.append(1))
    spool.stop(5)
    spool.put(lambda: done.append(2), rows=4)
    assert (spool.lost, done) == (7, [1])
    assert spool.drain(30) is False  # the thread has ended: nobody waits for it


def test_a_defect_in_the_work_ends_neither_the_thread_nor_the_run(spool):
    spool.put(lambda: {}["gone"], rows=2)
    done = []
    spool.put(lambda: done.append(1))
    assert spool.drain(5)
    assert (done, spool.lost) == ([1], 2)
    assert "KeyError" in spool.trouble


def test_a_forked_child_does_nothing_and_waits_for_no_lock(spool):
    held, go = threading.Event(), threading.Event()

    def hold():
        with spool._change:
            held.set()
            go.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        child = os.fork()
    if child == 0:
        signal.alarm(5)
        spool.put(lambda: None, rows=1)
        spool.stop(5)
        os._exit(0 if (spool.drain(5), spool.lost) == (False, 0) else 1)
    status = os.waitpid(child, 0)[1]
    go.set()
    holder.join()
    assert status == 0
    assert spool.drain(5)
