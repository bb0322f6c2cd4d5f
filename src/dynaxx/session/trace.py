"""What a batch leaves in a model besides its gradient: running statistics, put back where its update is left out."""

from collections.abc import Iterable

import torch
from torch import Tensor

from dynaxx.core.events import StepBatch


class Trace:
    """Looks at the scale of a step's batches, and keeps the buffers that forwards change from before them.

    A batch of NaN leaves NaN in the running statistics of a batch normalisation for good, and one a hundredfold too
    large shifts them for dozens of steps, whatever becomes of its gradient. Kept are the buffers that the first step
    was seen to change, not tables and masks: one copy of them a step. What a model keeps elsewhere is not put back.

    Args:
        buffers: The model's, as they are now; one that is replaced by another tensor later on is none of them.
    """

    def __init__(self, buffers: Iterable[Tensor]) -> None:
        self._buffers = list(buffers)
        self._kept: list[Tensor] = []
        self._chosen = False

    def begins(self, batch: StepBatch, first: Tensor | None) -> None:
        """A training forward of a step begins.

        Args:
            batch: What is known of the step's batches; this one's scale is added to it.
            first: The first tensor that goes into the model.
        """
        if batch.forwards == 1:
            self._keep()
        if first is not None and first.is_floating_point() and first.numel():
            extent = torch.linalg.vector_norm(first.detach(), torch.inf)
            batch.extent = extent if batch.extent is None else torch.maximum(batch.extent, extent)

    def put_back(self) -> None:
        """The step's update was left out: its batches leave no trace in the buffers."""
        if self._kept:
            with torch.no_grad():
                torch._foreach_copy_(self._buffers, self._kept)  # pyright: ignore[reportPrivateUsage]

    def _keep(self) -> None:
        if not self._kept:
            self._kept = [buffer.detach().clone() for buffer in self._buffers]
            return
        if not self._chosen:  # their versions do not tell: batch normalisation writes past them
            self._chosen = True
            pairs = zip(self._buffers, self._kept, strict=True)
            moving = [(buffer, kept) for buffer, kept in pairs if not torch.equal(buffer, kept)]
            self._buffers, self._kept = [b for b, _ in moving], [k for _, k in moving]
        if self._kept:
            with torch.no_grad():
                torch._foreach_copy_(self._kept, self._buffers)  # pyright: ignore[reportPrivateUsage]
