"""Fraction of gradient entries that are exactly zero, by layer."""

from collections.abc import Sequence

import torch
from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout, local
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.numerics.reductions import count, entries, layer_shares


class GradZeros(Signal[Column]):
    """Share of exact zeros among each layer's gradient entries; a parameter without a gradient counts as all zeros."""

    at = Event.GRADS_READY
    cost = Cost(sweeps=1.0)

    def init(self, model: nn.Module, layout: Layout) -> Column:
        """The column, one entry per layer, weighted by the layers' sizes."""
        del model
        return Column(
            name="grad_zeros", axis=layout.axis, reduce="mean", about="fraction of gradient entries exactly zero"
        )

    def measure(self, state: Column, step: StepView) -> tuple[Column, Sequence[Measurement]]:
        """One pass over the gradients."""
        zeros: list[torch.Tensor | float] = []
        for gradient, parameter in zip(step.gradients, step.layout.parameters, strict=True):
            if gradient is None:
                zeros.append(float(entries(local(parameter.detach()))))
            else:
                zeros.append(count(gradient, "zero"))
        return state, (Measurement(column=state, value=layer_shares(zeros, step.layout)),)
