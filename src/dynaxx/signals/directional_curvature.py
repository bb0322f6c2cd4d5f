"""Curvature of the loss along the step's own gradient."""

from collections.abc import Sequence

from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, Need, StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.numerics.hessian import Hessian
from dynaxx.signals._curvature import gradient_row, objective_of

_COLUMN = Column(
    name="directional_curvature",
    unit="loss/parameter²",
    about="gᵀHg/‖g‖² along the step's gradient, on the probe batch",
)


class DirectionalCurvature(Signal[None]):
    """gᵀHg/‖g‖², g the gradient that the step is taken with and H the Hessian of the probe batch, by one product.

    Along g the loss falls by η‖g‖²(1 − η·gᵀHg/(2‖g‖²)) to second order, so plain gradient descent overshoots where it
    exceeds 2/η.
    """

    at = Event.GRADS_READY
    needs = frozenset({Need.CURVATURE})
    cost = Cost(products=1.0)
    unit = "loss/parameter²"

    def init(self, model: nn.Module, layout: Layout) -> None:
        """No state."""
        del model, layout

    def measure(self, state: None, step: StepView) -> tuple[None, Sequence[Measurement]]:
        """One product at the weights that the gradient was taken at."""
        objective = objective_of(step)
        hessian = Hessian(objective, keep_graph=False)
        row = gradient_row(step, objective, hessian.space)
        row = row / hessian.space.norms(row)[:, None]
        return state, (Measurement(column=_COLUMN, value=hessian.space.gram(row, hessian(row)).reshape(())),)
