"""Counts what goes through the model's training forwards of a step."""

import torch
from torch import Tensor

from dynaxx.core.events import StepBatch
from dynaxx.core.parameters import Layout


def count(batch: StepBatch, first: Tensor | None, layout: Layout, *, again: bool) -> int:
    """Enter one forward.

    Args:
        batch: The step's, to write.
        first: The first tensor that goes into the model; None: there is none.
        layout: The model's parameters.
        again: Whether a closure is evaluated once more: it sees the same examples again.

    Returns:
        The examples that came in with this forward: the tensor's leading dimension.
    """
    batch.forwards += 1
    samples = 0 if first is None or first.dim() == 0 or again else first.shape[0]
    batch.samples += samples
    if first is not None and first.dim() == 2 and not first.is_floating_point():
        batch.tokens += first.numel()
    kind = layout.device.type
    if torch.is_autocast_enabled(kind):
        batch.compute_dtype = torch.get_autocast_dtype(kind)
    else:
        batch.compute_dtype = layout.parameters[0].dtype
    return samples
