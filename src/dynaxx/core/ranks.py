"""The processes among which batches or parameters are divided, and sums over them."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from dynaxx.core.parameters import is_sharded
from dynaxx.errors import BadInput


class Ranks:
    """A set of processes; of one process alone where `groups` is empty, and then nothing is communicated.

    Args:
        groups: Process groups whose product is the set: one, or one per dimension of a device mesh.
    """

    def __init__(self, groups: Sequence[Any] = ()) -> None:
        self.groups = tuple(groups)
        self.size = 1
        """How many processes."""
        self.rank = 0
        """Which of them this is."""
        if groups:
            import torch.distributed as dist  # deferred: one process alone never needs it

            for group in groups:
                self.rank = self.rank * dist.get_world_size(group) + dist.get_rank(group)
                self.size *= dist.get_world_size(group)

    @classmethod
    def of_parameters(cls, parameters: Sequence[Tensor]) -> "Ranks":
        """The ranks among which parameters are divided: those of the first DTensor's mesh.

        Args:
            parameters: The tensors, DTensors among them or not.

        Returns:
            The ranks.
        """
        mesh = next((cast(Any, p).device_mesh for p in parameters if is_sharded(p)), None)
        return cls() if mesh is None else cls([mesh.get_group(dimension) for dimension in range(mesh.ndim)])

    @classmethod
    def of_group(cls, group: Any | Literal["world"] | None) -> "Ranks":
        """The ranks of a process group.

        Args:
            group: A `torch.distributed` process group, "world" for all processes, or None for this one alone.

        Returns:
            The ranks.

        Raises:
            BadInput: torch.distributed has not been initialised.
        """
        if group is None:
            return cls()
        import torch.distributed as dist

        if not dist.is_initialized():
            raise BadInput(
                f"Objective(process_group={group!r}) needs several processes, and torch.distributed is not "
                "initialised. Call torch.distributed.init_process_group first, or leave it out."
            )
        return cls([dist.group.WORLD if isinstance(group, str) and group == "world" else group])

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the ranks: a collective.

        Args:
            value: This rank's part, of one shape on every rank.

        Returns:
            The sum, on every rank; the tensor itself where there is one process.
        """
        return self._reduced(value, "SUM")

    def largest(self, value: Tensor) -> Tensor:
        """The largest of each entry over the ranks: a collective.

        Args:
            value: Of one shape on every rank.

        Returns:
            The maximum, on every rank.
        """
        return self._reduced(value, "MAX")

    def _reduced(self, value: Tensor, operation: str) -> Tensor:
        if not self.groups:
            return value
        import torch.distributed as dist

        value = value.detach().clone(memory_format=torch.contiguous_format)
        for group in self.groups:
            dist.all_reduce(value, op=getattr(dist.ReduceOp, operation), group=group)
        return value
