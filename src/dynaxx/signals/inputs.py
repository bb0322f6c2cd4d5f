"""What goes into the model: scale of the inputs, values that are not finite, a fingerprint that shows repeats."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx.core.contracts import ForwardSignal, Tap
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout, widest
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.core.task import first_tensor

ENTRIES = 65_536
"""Entries of a batch that the fingerprint is taken of, evenly spread: two batches that agree in all are the same."""
_TURN = 0.6180339887498949  # the golden ratio's fraction: multiples of it spread evenly over [0, 1)

_MEAN = Column(name="inputs.mean", about="mean of the model's input; NaN where it holds integers")
_STD = Column(name="inputs.std", about="standard deviation of the model's input; NaN where it holds integers")
_MAX = Column(name="inputs.max", about="largest finite magnitude of the model's input")
_NONFINITE = Column(name="inputs.nonfinite", about="fraction of the model's input that is NaN or infinite")
_FINGERPRINT = Column(
    name="inputs.fingerprint",
    dtype="float64",
    about="a number that two batches share only if they are the same",
)


class InputTap(Tap):
    """Adds one batch's statistics to buffers made beforehand.

    Args:
        device: Where the buffers are.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(5, dtype=widest(device), device=device)
        self.largest = torch.zeros((), device=device)

    def __call__(self, inputs: tuple[Any, ...], output: Any) -> None:
        """See the first tensor among the positional inputs."""
        del output
        x = first_tensor(inputs)
        if x is None or x.numel() == 0 or x.is_complex():
            return
        real, flat = x.is_floating_point(), x.detach().flatten()
        part = flat[:: max(1, flat.numel() // ENTRIES)].to(self.sums.dtype)
        place = torch.arange(1, part.numel() + 1, dtype=part.dtype, device=part.device)
        mark = (part.nan_to_num(0.0, 0.0, 0.0) * (place * _TURN).frac()).sum()
        wide = flat.to(torch.promote_types(flat.dtype, torch.float32)) if real else flat.to(torch.float32)
        good = torch.isfinite(wide)
        finite = torch.where(good, wide, 0.0)
        count = good.sum()
        mean = finite.sum() / count
        spread = torch.where(good, wide - mean, 0.0).square().sum() / count
        if not real:
            mean = torch.full_like(mean, torch.nan)
        bad = 1 - count / wide.numel()
        weight = float(wide.numel())
        row = torch.stack([torch.ones_like(mean), mean, spread, bad]).to(self.sums) * weight
        row[2] += weight * mean.to(self.sums).square()  # in float32 the square of a large mean would swallow the spread
        self.sums.add_(torch.cat([row, mark.reshape(1).to(self.sums)]))
        self.largest.copy_(torch.maximum(self.largest, finite.abs().amax()))


class Inputs(ForwardSignal[InputTap]):
    """Mean, spread, largest magnitude, share of NaN and infinite entries, and Σ xᵢ·frac(iφ) as a fingerprint.

    Of the first tensor that the model is called with. Keyword arguments are not seen. A batch that comes again has the
    same fingerprint, bit for bit, on one device.
    """

    at = Event.STEP_END
    cost = Cost()

    def init(self, model: nn.Module, layout: Layout) -> InputTap:
        """The one tap."""
        del model
        return InputTap(layout.device)

    def tap(self, state: InputTap, name: str, module: nn.Module) -> Tap | None:
        """Only the model itself."""
        del module
        return state if name == "" else None

    def measure(self, state: InputTap, step: StepView) -> tuple[InputTap, Sequence[Measurement]]:
        """Read the buffers of the forwards since the last measurement; NaN where nothing was seen."""
        del step
        sums: Tensor = state.sums
        mean, square, bad = (sums[1:4] / sums[0]).unbind()
        seen = sums[0] > 0
        values = (
            Measurement(column=_MEAN, value=mean),
            Measurement(column=_STD, value=(square - mean.square()).clamp_min(0).sqrt()),
            Measurement(column=_MAX, value=torch.where(seen, state.largest, torch.nan)),
            Measurement(column=_NONFINITE, value=bad),
            Measurement(column=_FINGERPRINT, value=torch.where(seen, sums[4], torch.nan)),
        )
        state.sums.zero_()
        state.largest.zero_()
        return state, values
