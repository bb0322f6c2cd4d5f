"""Size of the model's outputs: the logits, where it is a classifier or a language model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx.core.contracts import ForwardSignal, Tap
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.core.task import first_tensor

_NORM = Column(name="logit_norm", about="L2 norm of the model's output vector, mean over examples or positions")
_MAX = Column(name="logit_norm.max", about="largest magnitude of the model's outputs")


class LogitTap(Tap):
    """Adds up row norms of the output and keeps its largest magnitude.

    Args:
        device: Where the buffers are.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(2, device=device)
        self.largest = torch.zeros((), device=device)

    def __call__(self, inputs: tuple[Any, ...], output: Any) -> None:
        """See one output; a model output with an entry or attribute `logits` is read there, else its first tensor."""
        del inputs
        named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
        x = first_tensor(output) if named is None else named
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2 or x.numel() == 0:
            return
        norms = torch.linalg.vector_norm(x.detach(), dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
        total = norms.sum()
        self.sums.add_(torch.stack([total, torch.full_like(total, norms.numel())]).to(self.sums))
        self.largest.copy_(torch.maximum(self.largest, x.detach().abs().amax().to(torch.float32)))


class LogitNorm(ForwardSignal[LogitTap]):
    """Mean over rows of ‖z‖₂ of the model's output z, whose last dimension is taken as the logits, and max |z|."""

    at = Event.STEP_END
    cost = Cost()

    def init(self, model: nn.Module, layout: Layout) -> LogitTap:
        """The one tap."""
        del model
        return LogitTap(layout.device)

    def tap(self, state: LogitTap, name: str, module: nn.Module) -> Tap | None:
        """Only the model itself."""
        del module
        return state if name == "" else None

    def measure(self, state: LogitTap, step: StepView) -> tuple[LogitTap, Sequence[Measurement]]:
        """Read the buffers of the forwards since the last measurement; NaN where the model returns no logits."""
        del step
        values = (
            Measurement(column=_NORM, value=state.sums[0] / state.sums[1]),
            Measurement(column=_MAX, value=torch.where(state.sums[1] > 0, state.largest, torch.nan)),
        )
        state.sums.zero_()
        state.largest.zero_()
        return state, values
