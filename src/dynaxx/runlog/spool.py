"""A queue of disk work and the one thread that does it: nothing here waits for a disk, and no disk can stop a run."""

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

PAUSE = 1.0
"""Seconds between two tries of work that failed."""


class Job(NamedTuple):
    """One piece of work: it raises OSError where the disk does not take it, and can then be done again."""

    work: Callable[[], None]
    size: int
    rows: int


class Spool:
    """Does pieces of work in order, in a thread of its own; tries again after an OSError.

    After a fork the child's copy does nothing: the thread, the files and the queue belong to the parent.

    Args:
        capacity: Bytes that may wait; what comes beyond is dropped and its rows are counted as lost.
        after: Called by the thread after each piece of work that was done.
    """

    def __init__(self, capacity: int, after: Callable[[], None]) -> None:
        self.lost = 0
        self.trouble: str | None = None
        self._capacity, self._after = capacity, after
        self._jobs: deque[Job] = deque()
        self._waiting = self._accepted = self._finished = self._failures = 0
        self._hurry = self._stopping = False
        self._process = os.getpid()
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="dynaxx-log", daemon=True)
        self._thread.start()

    def put(self, work: Callable[[], None], size: int = 0, rows: int = 0) -> None:
        """Add work, or drop it where too much is waiting.

        Args:
            work: What to do.
            size: Bytes it holds in memory.
            rows: Rows that are lost with it.
        """
        if os.getpid() != self._process:
            return
        with self._change:
            if self._stopping:
                self.lost += rows
                return
            if self._waiting + size > self._capacity:
                self.lost += rows
                self.trouble = self.trouble or f"the disk is slower than the log: {self._waiting >> 20} MiB wait"
                return
            self._jobs.append(Job(work, size, rows))
            self._waiting += size
            self._accepted += 1
            self._change.notify_all()

    def drain(self, timeout: float) -> bool:
        """Wait until all work that was added so far is done, or one more try has failed.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether it is done.
        """
        if os.getpid() != self._process:
            return False
        with self._change:
            goal, failures = self._accepted, self._failures
            self._hurry = True
            self._change.notify_all()
            self._change.wait_for(
                lambda: self._finished >= goal or self._failures > failures or not self._thread.is_alive(), timeout
            )
            return self._finished >= goal

    def stop(self, timeout: float) -> None:
        """Do what waits, each piece tried once more, and end the thread.

        Args:
            timeout: Seconds to wait for it at most.
        """
        if os.getpid() != self._process:
            return
        with self._change:
            self._stopping = True
            self._change.notify_all()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._jobs or self._stopping)
                if not self._jobs:
                    return
                job = self._jobs[0]
            done = self._try(job)
            with self._change:
                if done or self._stopping:
                    self.lost += 0 if done else job.rows
                    self._jobs.popleft()
                    self._waiting -= job.size
                    self._finished += done
                else:
                    self._change.wait_for(lambda: self._hurry or self._stopping, PAUSE)
                self._hurry = False
                self._change.notify_all()

    def _try(self, job: Job) -> bool:
        try:
            job.work()
        except OSError as error:
            with self._change:
                self.trouble = self.trouble or str(error)
                self._failures += 1
                self._change.notify_all()
            return False
        except Exception as error:
            # A defect of ours, not of the disk: doing it again would fail again, and the thread must live.
            with self._change:
                self.trouble = self.trouble or f"{type(error).__name__}: {error}"
                self.lost += job.rows
            return True
        try:
            self._after()
        except OSError:
            pass  # bookkeeping: tried again after the next piece
        return True
