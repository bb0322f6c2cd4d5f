"""What the checks share: the batch that is meant, its loss, its gradient, and numbers of any batch's parts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from dynaxx.core.navigation import LivePoint
from dynaxx.core.objective import Objective
from dynaxx.core.task import leading
from dynaxx.errors import BadInput, NotApplicable


def chosen(point: LivePoint, step: int | None) -> Any:
    """The training batch of a step.

    Args:
        point: The live run.
        step: Completed optimizer steps right after it; None: the last one.

    Returns:
        The batch.

    Raises:
        NotApplicable: It is kept no more.
    """
    back = 0 if step is None else point.step - step
    kept = (*point.earlier, *point.batches)
    if not 0 <= back < len(kept):
        raise NotApplicable(f"the batch of step {step} is not among the last {len(kept)}, up to {point.step}")
    return kept[-1 - back]


def objective(
    point: LivePoint, batches: Sequence[Any], mode: Literal["evaluation", "training", "as is"] = "as is"
) -> Objective:
    """The loss of some batches at the live weights; nothing of the run changes by it.

    Args:
        point: The live run.
        batches: Some of its batches.
        mode: In which modes its modules are.

    Returns:
        The objective.
    """
    return Objective(point.model, point.loss, list(batches), weight=point.weight, mode=mode)


def value(point: LivePoint, batch: Any, mode: Literal["evaluation", "training", "as is"] = "as is") -> float:
    """The loss of one batch at the live weights.

    Args:
        point: The live run.
        batch: The batch.
        mode: In which modes its modules are.

    Returns:
        The loss; not finite where it is not.
    """
    return objective(point, [batch], mode).value()


def gradient(point: LivePoint, batch: Any) -> list[Tensor]:
    """The gradient of one batch at the live weights.

    Args:
        point: The live run.
        batch: The batch.

    Returns:
        One tensor per parameter that requires a gradient.

    Raises:
        NotApplicable: It is not finite; `non_finite_origin` says where that comes from.
    """
    try:
        return objective(point, [batch]).gradient()
    except BadInput as error:
        raise NotApplicable(f"loss or gradient is not finite: {error}") from error


def size(batch: Any) -> int:
    """Examples of a batch.

    Args:
        batch: The batch.

    Returns:
        Its leading dimension.

    Raises:
        NotApplicable: It has none, or one example only.
    """
    n = leading(batch)
    if n is None or n < 2:
        raise NotApplicable("the batch has no leading dimension of at least two examples")
    return n


def tensors(batch: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a batch with their places in it.

    Args:
        batch: A tensor, or nested tuples, lists and mappings of them.
        name: The place of the whole.

    Yields:
        Place ("0", "1.mask"; "batch" for a bare tensor) and tensor, in order.
    """
    if isinstance(batch, Tensor):
        yield name or "batch", batch
    elif isinstance(batch, Mapping):
        for key, part in cast(Mapping[Any, Any], batch).items():
            yield from tensors(part, f"{name}.{key}".lstrip("."))
    elif isinstance(batch, list | tuple):
        for i, part in enumerate(cast(Sequence[Any], batch)):
            yield from tensors(part, f"{name}.{i}".lstrip("."))


def labels(batch: Any) -> tuple[str, Tensor]:
    """What looks like the labels of a batch: the last tensor that has one entry per example, if there are others.

    Args:
        batch: The batch.

    Returns:
        Its place, and the tensor.

    Raises:
        NotApplicable: There is none; then targets are made of the inputs, or inside the loss.
    """
    n = leading(batch)
    found = [(name, t) for name, t in tensors(batch) if t.dim() and t.shape[0] == n]
    if n is None or len(found) < 2:
        raise NotApplicable("the batch holds no labels beside its inputs")
    return found[-1]


def plain(number: Tensor | float) -> float | None:
    """A number for the log; None where it is not finite, for which JSON has no word.

    Args:
        number: A number, or a tensor with one element.

    Returns:
        The number.
    """
    here = float(number)
    return here if math.isfinite(here) else None


def dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The inner product of two gradients, in float64.

    Args:
        one: One tensor per parameter.
        other: Of the same shapes.

    Returns:
        The sum over all entries.
    """
    parts = [(a.to(torch.float64) * b.to(torch.float64)).sum() for a, b in zip(one, other, strict=True)]
    return float(torch.stack(parts).sum())
