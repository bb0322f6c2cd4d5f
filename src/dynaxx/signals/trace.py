"""Trace of the Hessian: the mean curvature over all directions."""

from collections.abc import Sequence

from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, Need, StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.core.task import derive_seed
from dynaxx.numerics.trace import trace
from dynaxx.signals._curvature import hessian_of, pairs_of

BUDGET = 6
"""Products of a measurement: relative errors of some per cent once a few eigenvalues stand out, and it says which."""

_UNIT = "loss/parameter²"
_TRACE = Column(name="trace", unit=_UNIT, about="trace of the Hessian on the probe batch")
_ERROR = Column(name="trace.error", unit=_UNIT, about="standard error of the trace")
_MEAN = Column(name="trace.mean", unit=_UNIT, about="trace over the number of parameters: the mean eigenvalue")


class Trace(Signal[None]):
    """tr H of the probe batch with its standard error, and tr H / n, the mean eigenvalue.

    By random products (`numerics.trace`), new ones at each step; what `sharpness` found at the same step enters
    exactly.
    """

    at = Event.STEP_END
    needs = frozenset({Need.CURVATURE})
    cost = Cost(products=float(BUDGET))
    unit = _UNIT

    def init(self, model: nn.Module, layout: Layout) -> None:
        """No state."""
        del model, layout

    def measure(self, state: None, step: StepView) -> tuple[None, Sequence[Measurement]]:
        """A fixed number of products."""
        hessian = hessian_of(step)
        found = trace(hessian, BUDGET, known=pairs_of(step), seed=derive_seed("trace", step.step))
        return state, (
            Measurement(column=_TRACE, value=found.value),
            Measurement(column=_ERROR, value=found.error or 0.0),
            Measurement(column=_MEAN, value=found.value / hessian.space.numel),
        )
