"""How many gradient entries are NaN or infinite, by layer, and so where they began."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.numerics.reductions import count, gradient_norms, gradient_tensor_norms, layer_sums

EVERY = 16
"""On an accelerator counts are taken every 16th step: asking each step whether the norm is finite would wait for it."""


class GradNonfinite(Signal[Column]):
    """Number of NaN and ±Inf entries of each layer's gradient.

    On the CPU a row exists exactly for the steps whose gradient norm is not finite, and costs nothing at others: a
    finite norm proves that every entry is. On accelerators a row exists every 16th step.
    """

    at = Event.GRADS_READY
    every_step = True
    cost = Cost(sweeps=1.0)  # the norm of the gradient, which `grad_norm` takes in any case
    unit = "entries"

    def init(self, model: nn.Module, layout: Layout) -> Column:
        """The column, one entry per layer."""
        del model
        return Column(
            name="grad_nonfinite", axis=layout.axis, unit=self.unit, reduce="sum", about="NaN or infinite entries"
        )

    def measure(self, state: Column, step: StepView) -> tuple[Column, Sequence[Measurement]]:
        """Count where there is something to count."""
        norms = gradient_norms(step) if step.layout.sharded else gradient_tensor_norms(step)
        if isinstance(norms, Tensor) and step.layout.device.type == "cpu":
            norms = norms.tolist()
        if all(map(math.isfinite, norms)) if isinstance(norms, list) else step.step % EVERY:
            return state, ()
        counts = [count(g, "nonfinite") for g in step.gradients]
        return state, (Measurement(column=state, value=layer_sums(counts, step.layout)),)
