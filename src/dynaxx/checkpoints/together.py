"""Ranks that act as one: what one of them finds wrong all of them raise, and who is gone is waited for so long only."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch.distributed as dist

from dynaxx.errors import BadInput, DynaxxError

T = TypeVar("T")


class Together:
    """All ranks of a job, in a process group of their own, so that a thread may talk beside the training.

    Args:
        timeout: Seconds that a rank waits for the others.

    Raises:
        BadInput: torch.distributed has not been initialised, or the timeout is not positive.
    """

    def __init__(self, timeout: float) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise BadInput(
                "ShardedStore(...) is for several ranks, and torch.distributed is not initialised. Call "
                "torch.distributed.init_process_group first, or use CheckpointStore."
            )
        if not timeout > 0:
            raise BadInput(f"ShardedStore(timeout=...) must be a positive number of seconds. Got {timeout!r}.")
        self.timeout = timedelta(seconds=timeout)
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.group: Any = dist.new_group(backend="gloo", timeout=self.timeout)
        self._lost = ""

    @contextmanager
    def answering(self, what: str, kind: type[DynaxxError]) -> Generator[None]:
        """What the group raises once a rank is gone, in words; the group is of no use after that.

        Args:
            what: What then has not been done, as the beginning of a sentence.
            kind: The error to raise.

        Yields:
            Nothing.

        Raises:
            DynaxxError: A rank is gone or did not answer in time, now or before.
        """
        if self._lost:
            raise kind(f"{what}. {self._lost}: restart the training.")
        try:
            yield
        except RuntimeError as error:
            self.part(f"A rank is gone, or did not answer within {self.timeout.total_seconds():g} s")
            raise kind(f"{what}. {self._lost} ({str(error).splitlines()[0]}).") from error

    def meet(self) -> None:
        """Wait for all ranks; the first one learns which are missing.

        Raises:
            RuntimeError: One did not come in time; the first rank's error names it.
        """
        dist.monitored_barrier(self.group, timeout=self.timeout, wait_all_ranks=True)

    def gather(self, value: T) -> list[T]:
        """Every rank's value.

        Args:
            value: This rank's: anything that can be sent.

        Returns:
            One per rank, on all of them.
        """
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def first(self, function: Callable[[], T]) -> T:
        """What the first rank finds.

        Args:
            function: Called there alone.

        Returns:
            Its result, on every rank.

        Raises:
            DynaxxError: What it raised, on every rank.
        """
        box: list[Any] = [None]
        if self.rank == 0:
            try:
                box[0] = function()
            except DynaxxError as error:
                box[0] = error
        dist.broadcast_object_list(box, src=0, group=self.group)
        if isinstance(box[0], DynaxxError):
            raise box[0]
        return cast(T, box[0])

    def agree(self, function: Callable[[], T]) -> T:
        """Do something on every rank, and go on together or not at all.

        Args:
            function: Called on every rank.

        Returns:
            What it returned here.

        Raises:
            DynaxxError: What it raised on the first of the ranks where it did, on every rank.
        """
        result, error = cast(T, None), None
        try:
            result = function()
        except DynaxxError as found:
            error = found
        for rank, found in enumerate(self.gather(error)):
            if found is not None:
                raise found if rank == self.rank else type(found)(f"Rank {rank}: {found}")
        return result

    def part(self, why: str) -> None:
        """Leave the group for good: those that wait for this rank need not wait on.

        Args:
            why: For who calls again.
        """
        group, self.group, self._lost = self.group, None, why
        if group is not None:
            dist.destroy_process_group(group)
