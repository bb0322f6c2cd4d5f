"""L2 norm of the update that the optimizer really applied, by layer."""

from collections.abc import Sequence

from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, Need, StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.numerics.reductions import update_norms


class UpdateNorm(Signal[Column]):
    """‖θ_{t+1} − θ_t‖₂ of each layer, from a copy of the parameters, so that it is right for every optimizer."""

    at = Event.STEP_END
    needs = frozenset({Need.UPDATE})
    cost = Cost(sweeps=1.0)
    unit = "parameter"

    def init(self, model: nn.Module, layout: Layout) -> Column:
        """The column, one entry per layer."""
        del model
        about = "L2 norm of the parameters' real change in one step"
        return Column(name="update_norm", axis=layout.axis, unit=self.unit, reduce="l2", about=about)

    def measure(self, state: Column, step: StepView) -> tuple[Column, Sequence[Measurement]]:
        """One pass over the update."""
        return state, (Measurement(column=state, value=update_norms(step)),)
