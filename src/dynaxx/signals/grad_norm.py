"""L2 norm of the gradient, by layer, at every step."""

from collections.abc import Sequence

from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.numerics.reductions import gradient_norms, gradient_tensor_norms


class GradNorm(Signal[Column]):
    """‖g_l‖₂ of each layer l, after accumulation and unscaling, before clipping; a missing gradient counts as zero."""

    at = Event.GRADS_READY
    every_step = True
    cost = Cost(sweeps=1.0)
    unit = "loss/parameter"

    def init(self, model: nn.Module, layout: Layout) -> Column:
        """The column, one entry per layer."""
        del model
        about = "L2 norm of the gradient: accumulated, unscaled, before clipping"
        return Column(name="grad_norm", axis=layout.axis, unit=self.unit, reduce="l2", about=about)

    def measure(self, state: Column, step: StepView) -> tuple[Column, Sequence[Measurement]]:
        """One pass over the gradients; where they are whole, the log adds up the layers later."""
        if step.layout.sharded:
            return state, (Measurement(column=state, value=gradient_norms(step)),)
        return state, (Measurement(column=state, value=gradient_tensor_norms(step), fold=step.layout.layer_of),)
