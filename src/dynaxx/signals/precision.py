"""Mixed precision: loss scale, updates left out, and gradients too small for the compute dtype."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.numerics.reductions import count, layer_shares


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    scale: Column
    skipped: Column
    underflow: Column
    seen: int = 0


class Precision(Signal[_State]):
    """The gradient scaler's scale S, skipped updates, and the share of entries with 0 < |S·g| < smallest normal.

    The smallest normal is that of the compute dtype (autocast's, or the parameters'): 6.1e-5 for float16, 1.2e-38 for
    bfloat16 and float32. Exact zeros are not counted: dead units make them too (see `grad_zeros`).

    Skipped updates have rows where they can be known: under a gradient scaler, and where an action left some out.
    """

    at = Event.GRADS_READY
    cost = Cost(sweeps=4.0)  # magnitudes, comparison, its sum, and the zeros apart

    def init(self, model: nn.Module, layout: Layout) -> _State:
        """The columns; underflow has one entry per layer."""
        del model
        return _State(
            scale=Column(name="precision.loss_scale", about="scale of the loss under the gradient scaler"),
            skipped=Column(name="precision.skipped", unit="updates", about="updates left out since the last row"),
            underflow=Column(
                name="precision.underflow",
                axis=layout.axis,
                reduce="mean",
                about="fraction of gradient entries under the smallest normal of the compute dtype",
            ),
        )

    def measure(self, state: _State, step: StepView) -> tuple[_State, Sequence[Measurement]]:
        """Count small entries."""
        threshold: torch.Tensor | float = torch.finfo(step.batch.compute_dtype).tiny
        if step.loss_scale is not None and step.gradient_factor is None:  # the gradients are unscaled already
            threshold = threshold / step.loss_scale
        small = [count(g, "below", threshold) for g in step.gradients]
        values = [Measurement(column=state.underflow, value=layer_shares(small, step.layout))]
        new = step.skipped - state.seen
        if new or step.loss_scale is not None:
            values.append(Measurement(column=state.skipped, value=float(new)))
        if step.loss_scale is not None:
            values.append(Measurement(column=state.scale, value=step.loss_scale))
        return replace(state, seen=step.skipped), values
