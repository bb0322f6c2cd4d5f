"""Ranks that act as one: what one of them finds wrong all of them raise, and who is gone is waited for so long only."""

from collections.abc import Callable
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

    def agree(self, error: DynaxxError | None) -> None:
        """Go on together, or not at all.

        Args:
            error: What this rank found wrong.

        Raises:
            DynaxxError: The first rank's error among those that any rank found, on every rank.
        """
        for rank, found in enumerate(self.gather(error)):
            if found is not None:
                raise found if rank == self.rank else type(found)(f"Rank {rank}: {found}")

    def part(self) -> None:
        """Leave the group, which a rank that is gone has spoilt: those that wait for this one need not wait on."""
        group, self.group = self.group, None
        if group is not None:
            dist.destroy_process_group(group)
