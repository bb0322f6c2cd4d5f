"""Saving beside the training: a state is copied, and one thread writes and commits the copies in order."""

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue

from torch import Tensor

from dynaxx.checkpoints.arena import Arena
from dynaxx.checkpoints.manifest import CheckpointInfo
from dynaxx.errors import DynaxxError, DynaxxWarning, NotSaved

PATIENCE = 300.0
"""Seconds that training waits for memory at most: half of the ten minutes after which NCCL's watchdog takes a rank that
does not answer for dead."""
_ARENAS = 2  # one is written while the next one is filled; a third would only hide a disk that is too slow

Commit = Callable[[Mapping[str, Tensor]], CheckpointInfo]


class PendingSave:
    """A save under way.

    Args:
        step: Completed optimizer steps.
        outcome: What becomes of it.
        stalled: Seconds that training waited for earlier saves before this one could be copied.
    """

    def __init__(self, step: int, outcome: "Future[CheckpointInfo]", stalled: float = 0.0) -> None:
        self.step = step
        self.stalled = stalled
        self.outcome = outcome
        self._process = os.getpid()
        self._asked = False

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self.outcome.done()

    def result(self, timeout: float | None = None) -> CheckpointInfo:
        """The checkpoint, once it survives a kill and the loss of power.

        Args:
            timeout: Seconds to wait; None: until it has ended.

        Returns:
            The checkpoint.

        Raises:
            NotSaved: It could not be written, or belongs to the process that this one was forked from.
            TimeoutError: It has not ended yet.
        """
        if os.getpid() != self._process and not self.done:
            raise NotSaved(f"The save of step {self.step} belongs to process {self._process}. Ask for it there.")
        try:
            return self.outcome.result(timeout)
        finally:
            self._asked = self.done

    def warn_if_lost(self) -> None:
        """Say that it failed, unless its result has been asked for."""
        if not self._asked and (error := self.outcome.exception()) is not None:
            self._asked = True
            warnings.warn(f"A checkpoint was not saved; training goes on. {error}", DynaxxWarning, stacklevel=4)

    def __repr__(self) -> str:
        return f"<PendingSave of step {self.step}, {'done' if self.done else 'under way'}>"


class Background:
    """The thread of a store, and the memory that it writes from; a forked process begins with its own."""

    def __init__(self) -> None:
        self.stalls = 0
        self.stalled = 0.0
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="dynaxx-save")  # its exit handler waits for what is left
        self._free: SimpleQueue[Arena] = SimpleQueue()
        for _ in range(_ARENAS):
            self._free.put(Arena())
        self._pending: list[PendingSave] = []

    def submit(self, step: int, tensors: Mapping[str, Tensor], commit: Commit, patience: float) -> PendingSave:
        """Copy tensors, and have the copies committed.

        Args:
            step: Completed optimizer steps.
            tensors: Name → contiguous tensor; it may change once this returns.
            commit: Writes the copies.
            patience: Seconds to wait for memory, perhaps `math.inf`; after them the save has failed.

        Returns:
            The save; where there is no memory for a copy it has ended already, written from the tensors themselves.
        """
        if os.getpid() != self._process:
            self._begin()
        self.reap()
        arena, stalled = self._arena(patience)
        if arena is None:
            outcome: Future[CheckpointInfo] = Future()
            outcome.set_exception(
                NotSaved(
                    f"The checkpoint of step {step} was not saved: {_ARENAS} saves before it were still being written "
                    f"after {patience:g} s. Save less often, or on a faster disk; the next save tries again"
                )
            )
        else:
            outcome = self._committed(step, arena, tensors, commit)
        pending = PendingSave(step, outcome, stalled)
        self._pending.append(pending)
        return pending

    def reap(self) -> None:
        """Forget the saves that have ended; say which of them failed without anybody having asked."""
        over = [pending for pending in self._pending if pending.done]
        self._pending = [pending for pending in self._pending if not pending.done]
        for pending in over:
            pending.warn_if_lost()

    def flush(self, timeout: float | None) -> bool:
        """Wait for the saves under way.

        Args:
            timeout: Seconds; None: until all have ended.

        Returns:
            Whether all have.
        """
        if os.getpid() != self._process:
            self._begin()
        wait([pending.outcome for pending in self._pending], timeout)
        self.reap()
        return not self._pending

    def close(self) -> None:
        """Wait for the saves under way, end the thread and give the memory back; the next save begins anew."""
        self.flush(None)
        self._pool.shutdown()
        self._begin()

    def _arena(self, patience: float) -> tuple[Arena | None, float]:
        try:
            return self._free.get_nowait(), 0.0
        except Empty:
            began = time.perf_counter()
        try:
            arena = self._free.get(timeout=None if patience == math.inf else patience)
        except Empty:
            arena = None
        stalled = time.perf_counter() - began
        self.stalls += 1
        self.stalled += stalled
        return arena, stalled

    def _committed(
        self, step: int, arena: Arena, tensors: Mapping[str, Tensor], commit: Commit
    ) -> "Future[CheckpointInfo]":
        def job(copies: Mapping[str, Tensor]) -> CheckpointInfo:
            try:
                arena.wait()
                return commit(copies)
            except DynaxxError:
                raise
            except Exception as error:  # whatever it is, it costs a checkpoint and not the training
                what = f"{type(error).__name__}: {error}"
                raise NotSaved(
                    f"The checkpoint of step {step} was not saved ({what}); earlier ones are intact"
                ) from error
            finally:
                self._free.put(arena)

        try:
            copies = arena.hold(tensors)
        except RuntimeError:  # torch's word for too little memory: nothing is copied, and training waits
            outcome = self._submitted(job, {name: tensor.cpu() for name, tensor in tensors.items()})
            wait([outcome])
            return outcome
        except BaseException:  # an interrupt: the next save needs the memory
            self._free.put(arena)
            raise
        return self._submitted(job, copies)

    def _submitted(self, job: Commit, tensors: Mapping[str, Tensor]) -> "Future[CheckpointInfo]":
        try:
            return self._pool.submit(job, tensors)
        except RuntimeError:  # the interpreter is exiting and takes no more work
            outcome: Future[CheckpointInfo] = Future()
            try:
                outcome.set_result(job(tensors))
            except Exception as error:
                outcome.set_exception(error)
            return outcome
