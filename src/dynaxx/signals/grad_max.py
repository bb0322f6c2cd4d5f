"""Largest magnitude of the gradient, by layer."""

from collections.abc import Sequence

from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.numerics.reductions import layer_maxima


class GradMax(Signal[Column]):
    """max |g| over the entries of each layer; against the norm it tells a few large entries from many small ones."""

    at = Event.GRADS_READY
    cost = Cost(sweeps=1.0)
    unit = "loss/parameter"

    def init(self, model: nn.Module, layout: Layout) -> Column:
        """The column, one entry per layer."""
        del model
        return Column(
            name="grad_max", axis=layout.axis, unit=self.unit, reduce="max", about="largest gradient magnitude"
        )

    def measure(self, state: Column, step: StepView) -> tuple[Column, Sequence[Measurement]]:
        """One pass over the gradients."""
        value = layer_maxima(step.gradients, step.layout, step.gradient_factor)
        return state, (Measurement(column=state, value=value),)
