"""Sharpness: the largest eigenvalue of the Hessian, tracked from measurement to measurement."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, Need, StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.signals._curvature import MOST, hessian_of, keep_pairs, tracked

_UNIT = "loss/parameter²"
_VALUE = Column(name="sharpness", unit=_UNIT, about="largest eigenvalue of the Hessian on the probe batch")
_BOUND = Column(name="sharpness.bound", unit=_UNIT, about="bound on the error of the sharpness")
_LOWEST = Column(
    name="sharpness.lowest",
    unit=_UNIT,
    about="smallest Ritz value of the search: the smallest eigenvalue is no larger, so below 0 there is a way down",
)
_PRODUCTS = Column(name="sharpness.products", unit="products", about="Hessian products that the sharpness took")


class Sharpness(Signal[dict[str, Any]]):
    """λ₁ of the Hessian of the probe batch at the weights behind the update, with a bound on its error and its price.

    The smallest Ritz value of the search goes beside it: it proves a saddle where it is negative. The search begins
    with the last measurement's vectors (`numerics.tracker`), which go through the checkpoint.
    """

    at = Event.STEP_END
    needs = frozenset({Need.CURVATURE})
    cost = Cost(products=float(MOST))
    unit = _UNIT

    def init(self, model: nn.Module, layout: Layout) -> dict[str, Any]:
        """Nothing to begin with."""
        del model, layout
        return {}

    def measure(self, state: dict[str, Any], step: StepView) -> tuple[dict[str, Any], Sequence[Measurement]]:
        """As many products as the accuracy needs, `MOST` at most."""
        found, state = tracked(hessian_of(step), state)
        keep_pairs(step, found)
        return state, (
            Measurement(column=_VALUE, value=float(found.values[0])),
            Measurement(column=_BOUND, value=float(found.bounds[0])),
            Measurement(column=_LOWEST, value=found.lowest),
            Measurement(column=_PRODUCTS, value=float(found.products)),
        )
