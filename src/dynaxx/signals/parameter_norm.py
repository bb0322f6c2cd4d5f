"""L2 norm of the parameters, by layer."""

from collections.abc import Sequence

from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.numerics.reductions import parameter_norms


class ParameterNorm(Signal[Column]):
    """‖θ_l‖₂ of each layer after the update."""

    at = Event.STEP_END
    cost = Cost(sweeps=1.0)
    unit = "parameter"

    def init(self, model: nn.Module, layout: Layout) -> Column:
        """The column, one entry per layer."""
        del model
        about = "L2 norm of the parameters after the update"
        return Column(name="parameter_norm", axis=layout.axis, unit=self.unit, reduce="l2", about=about)

    def measure(self, state: Column, step: StepView) -> tuple[Column, Sequence[Measurement]]:
        """One pass over the parameters."""
        return state, (Measurement(column=state, value=parameter_norms(step)),)
