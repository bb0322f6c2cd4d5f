"""Minibatches with random access: any batch of an epoch at no cost, so that a run resumes at any position."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

import torch

Batch = TypeVar("Batch")


def permutation(count: int, seed: int) -> torch.Tensor:
    """A random order that depends on nothing but its arguments; the global random streams are left alone.

    Args:
        count: How many rows.
        seed: In [0, 2⁶³).

    Returns:
        int64 of shape (count,).
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


class Minibatches(Sequence[Batch], Generic[Batch]):
    """Rows in a given order, `batch_size` at a time; the last batch holds what is left.

    Args:
        gather: Makes a batch of the rows it is given, an int64 vector.
        order: The rows of the epoch, int64 of shape (count,).
        batch_size: Rows in a batch.

    Example:
        >>> [batch.tolist() for batch in Minibatches(lambda rows: rows * 10, torch.tensor([2, 0, 1]), 2)]
        [[20, 0], [10]]
    """

    def __init__(self, gather: Callable[[torch.Tensor], Batch], order: torch.Tensor, batch_size: int) -> None:
        self._gather = gather
        self._order = order
        self._batch_size = batch_size

    def __len__(self) -> int:
        return (len(self._order) + self._batch_size - 1) // self._batch_size

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        start = range(len(self))[index] * self._batch_size
        return self._gather(self._order[start : start + self._batch_size])
