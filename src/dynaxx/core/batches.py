"""Batches of any nesting: split along the leading dimension, counted, widened to float64."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dynaxx.core.task import leading
from dynaxx.errors import BadInput


def mapped(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch with each tensor in it changed.

    Args:
        batch: A tensor, or nested tuples, named tuples, lists and mappings of them; anything else stays as it is.
        change: From tensor to tensor.

    Returns:
        A new batch of the same nesting.
    """
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: mapped(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(mapped(value, change) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(mapped(value, change) for value in batch)
    return batch


def split(batch: Any, size: int | None) -> list[Any]:
    """Split a batch along the leading dimension.

    Args:
        batch: A tensor, or nested tuples, lists and mappings of them; tensors of another leading dimension than the
            first, and whatever is no tensor, go into every part.
        size: Entries in a part; None: do not split.

    Returns:
        The parts, the last one smaller where it does not divide.

    Example:
        >>> [len(x) for x, y in split((torch.zeros(5, 2), torch.zeros(5)), 2)]
        [2, 2, 1]
    """
    n = leading(batch)
    if size is None or n is None or n <= size:
        return [batch]

    def part(start: int) -> Any:
        return mapped(batch, lambda t: t[start : start + size] if t.dim() and t.shape[0] == n else t)

    return [part(start) for start in range(0, n, size)]


def widened(batch: Any) -> Any:
    """A batch with its floating tensors in float64.

    Args:
        batch: Any nesting of tensors.

    Returns:
        A new batch of the same nesting.
    """
    return mapped(batch, lambda t: t.to(torch.float64) if t.is_floating_point() else t)


def examples(batch: Any) -> float:
    """How many examples a batch holds: the leading dimension of the first tensor in it.

    Args:
        batch: Any nesting of tensors.

    Returns:
        The number.

    Raises:
        BadInput: There is no tensor in it.
    """
    n = leading(batch)
    if n is None:
        raise BadInput(f"Objective: no tensor in a {type(batch).__name__} batch, so it has no size. Give weight=.")
    return float(n)
