"""Stability margin: how far the sharpest direction is from where the optimizer's step overshoots it."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, Need, StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.numerics.preconditioner import Preconditioning, preconditioning
from dynaxx.signals._curvature import MOST, hessian_of, pairs_of, tracked

_MARGIN = Column(name="stability_margin", about="threshold over the largest eigenvalue; below 1 steps overshoot")
_SHARPNESS = Column(
    name="stability_margin.sharpness",
    about="largest eigenvalue of the Hessian times rate and preconditioner, on the probe batch",
)
_THRESHOLD = Column(name="stability_margin.threshold", about="largest stable eigenvalue of that kind")
_BOUND = Column(name="stability_margin.bound", about="bound on the error of the preconditioned sharpness")
_PRODUCTS = Column(
    name="stability_margin.products", unit="products", about="Hessian products that the margin took by itself"
)


class StabilityMargin(Signal[dict[str, Any]]):
    """threshold / λ₁(D H D), D and the threshold from the optimizer in use and its state (Cohen 2021, 2022).

    Below 1 the linearised training diverges along the sharpest direction of the probe batch. D = (η P⁻¹)^(1/2) holds
    rate and preconditioner, and H the weight decay that goes through the gradient; where both are one number, as for
    gradient descent, λ₁ follows from that of `sharpness` and costs nothing more.
    """

    at = Event.STEP_END
    needs = frozenset({Need.CURVATURE})
    cost = Cost(products=float(MOST))

    def init(self, model: nn.Module, layout: Layout) -> dict[str, Any]:
        """Nothing to begin with."""
        del model, layout
        return {}

    def measure(self, state: dict[str, Any], step: StepView) -> tuple[dict[str, Any], Sequence[Measurement]]:
        """As many products as the accuracy needs, `MOST` at most; none where `sharpness` has taken them."""
        hessian = hessian_of(step)
        rule = preconditioning(step.optimizer, hessian.space)
        known = pairs_of(step)
        if (known is not None or "borrows" in state) and _plain(rule):
            if known is None:  # its price was that of borrowing: at this cadence it must not search by itself
                return state, ()
            state, factor, found, products = {"borrows": True}, float(rule.scale[0]) ** 2, known, 0
            shift = 0.0 if rule.decay is None else float(rule.decay[0])
        else:
            found, state = tracked(rule.operator(hessian), state)
            factor, shift, products = 1.0, 0.0, found.products
        value, threshold = factor * (float(found.values[0]) + shift), rule.threshold / step.rates.group
        return state, (
            Measurement(column=_MARGIN, value=threshold / value),
            Measurement(column=_SHARPNESS, value=value),
            Measurement(column=_THRESHOLD, value=threshold),
            Measurement(column=_BOUND, value=factor * float(found.bounds[0])),
            Measurement(column=_PRODUCTS, value=float(products)),
        )


def _plain(rule: Preconditioning) -> bool:
    """Whether D (H + W) D is a multiple of the Hessian plus a multiple of the identity."""
    parts = [rule.scale] if rule.decay is None else [rule.scale, rule.decay]
    return rule.sign > 0 and not rule.rotations and all(bool((part == part[0]).all()) for part in parts)
