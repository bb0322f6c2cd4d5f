"""Processes of this machine, each with pinned torch threads; one that is killed is replaced and costs one attempt."""

import os
import signal
import threading
import time
from collections.abc import Generator, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from dynaxx.errors import BadInput, DynaxxError
from dynaxx.survey.engines._engine import TICK, Ended, Engine, Job, work

GRACE = 60.0
"""Seconds that a process has, once told to end, to complete its step and write a checkpoint."""


class Processes(Engine):
    """A pool of spawned processes, each of which trains one member after another.

    The standard pools lose every member under way when one process is killed; here each process has a pipe of its own,
    so that a kill costs that member alone.

    Args:
        workers: How many processes; None: as many as their threads fit on the cores, and one where there is an
            accelerator, which they would share.
        threads: torch threads of each; a task's own `threads` come first.

    Raises:
        BadInput: A number is below 1.
    """

    def __init__(self, workers: int | None = None, *, threads: int = 1) -> None:
        for name, value in (("workers", workers), ("threads", threads)):
            if value is not None and value < 1:
                raise BadInput(f"Processes({name}=...) must be at least 1. Got {value}.")
        accelerated = torch.accelerator.is_available()
        self.workers = workers or (1 if accelerated else max(1, cores() // threads))
        self.threads = threads

    def run(self, jobs: Sequence[Job]) -> Generator[Ended | None]:
        """Do the jobs."""
        waiting = list(reversed(jobs))
        workers: list[_Worker] = []
        try:
            workers += [_Worker(self.threads) for _ in range(min(self.workers, len(jobs)))]
            while waiting or any(worker.job for worker in workers):
                for place, worker in enumerate(workers):
                    if waiting and not worker.job:
                        workers[place] = worker = worker.alive_or_new()
                        worker.begin(waiting.pop())
                busy = [worker for worker in workers if worker.job]
                ready = wait([worker.pipe for worker in busy], timeout=TICK)
                yield from [worker.ended() for worker in busy if worker.pipe in ready]
                yield None
        finally:
            _stop(workers)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if os.name == "posix" and os.uname().sysname == "Linux" else os.cpu_count() or 1


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        context = get_context("spawn")  # forked processes inherit locks of torch's threads in any state
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, threads))
        self.process.start()
        other.close()  # else the pipe would not end when the process does
        self.job: Job | None = None
        self._greeted = False

    def alive_or_new(self) -> "_Worker":
        return self if self.process.is_alive() else _Worker(self._threads)

    def begin(self, job: Job) -> None:
        self.job = job
        try:
            self.pipe.send(job)
        except OSError:
            pass  # killed while idle: the pipe is at its end, and `ended` says so

    def ended(self) -> Ended | None:
        """What the pipe says: the process is ready, its job has ended, or it is gone."""
        assert self.job is not None
        try:
            message: Ended | None = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(GRACE)
            if not self._greeted and not _killed(self.process.exitcode):
                raise DynaxxError(
                    f"A worker process could not start (exit code {self.process.exitcode}). A script that runs a fleet "
                    'must do so under `if __name__ == "__main__":`, since each worker imports it anew.'
                ) from None
            message = Ended(job=self.job, status="lost", why=_death(self.process.exitcode))
        if message is None:
            self._greeted = True
            return None
        self.job = None
        return message


def _killed(code: int | None) -> bool:
    return code is not None and code < 0


def _death(code: int | None) -> str:
    if code is not None and _killed(code):
        return f"its process was killed by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"


def _stop(workers: Sequence[_Worker]) -> None:
    """End all processes; those in training complete their step and write a checkpoint first."""
    for worker in workers:
        if worker.job:
            worker.process.terminate()
        worker.pipe.close()
    until = time.monotonic() + GRACE
    for worker in workers:
        worker.process.join(max(0.0, until - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


_BUSY = threading.Lock()


def _serve(pipe: "Connection[Any, Any]", threads: int) -> None:
    """The life of a worker: jobs until the pipe ends."""
    if os.name == "posix":
        os.setpgrp()  # Ctrl-C in the terminal is for the parent, which tells the workers when to end
    torch.set_num_threads(threads)
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        pipe.send(None)
        while True:
            job: Job = pipe.recv()
            with _BUSY:
                message = work(job)
            pipe.send(message)
    except (EOFError, OSError):
        pass  # the parent has closed the pipe, or is gone


def _follow_parent() -> None:
    """A worker whose parent was killed saves its training and ends too, rather than train for nobody."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    with _BUSY:
        os._exit(1)
