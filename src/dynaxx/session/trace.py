"""What a batch leaves in a model besides its gradient: running statistics, put back where its update is left out."""

from collections.abc import Iterable

import torch
from torch import Tensor

from dynaxx.core.events import StepBatch


class Trace:
    """Looks at the scale of a step's batches, and keeps the buffers that forwards change from before them.

    A batch of NaN leaves NaN in the running statistics of a batch normalisation for good, and one a hundredfold too
    large shifts them for dozens of steps, whatever becomes of its gradient. Kept are the buffers that a forward has
    been seen to change in place: one copy of them a step, nothing for tables and masks. What a model keeps elsewhere
    is not put back.

    Args:
        buffers: The model's, as they are now; one that is replaced by another tensor later on is none of them.
    """

    def __init__(self, buffers: Iterable[Tensor]) -> None:
        self._still = list(buffers)
        self._versions: list[int] | None = None
        self._moving: list[Tensor] = []
        self._kept: list[Tensor] = []

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
        if self._moving:
            with torch.no_grad():
                torch._foreach_copy_(self._moving, self._kept)

    def _keep(self) -> None:
        versions = [buffer._version for buffer in self._still]
        if self._versions is not None and versions != self._versions:
            changed = [now != before for now, before in zip(versions, self._versions, strict=True)]
            found = [buffer for buffer, moved in zip(self._still, changed, strict=True) if moved]
            self._moving += found
            self._kept += [torch.empty_like(buffer) for buffer in found]
            self._still = [buffer for buffer, moved in zip(self._still, changed, strict=True) if not moved]
            versions = [buffer._version for buffer in self._still]
        self._versions = versions
        if self._moving:
            with torch.no_grad():
                torch._foreach_copy_(self._kept, self._moving)
