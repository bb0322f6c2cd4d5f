"""Measures the curvature along the gradient and along the update, against what the learning rate can stand."""

from collections.abc import Mapping
from typing import Any

from dynaxx.checks._looking import chosen, gradient, objective, plain
from dynaxx.core.navigation import Check, LivePoint
from dynaxx.core.records import Cost
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.directional import directional_curvature
from dynaxx.numerics.hessian import Hessian
from dynaxx.numerics.preconditioner import Preconditioning, preconditioning


class DirectionalCurvature(Check):
    """gᵀHg/‖g‖² on a batch, and the same along the optimizer's update D²g in the scaling D = (η P⁻¹)^(1/2).

    In that scaling stability has one threshold whatever the preconditioner (Cohen et al. 2022): 2 for gradient descent,
    so gᵀHg/‖g‖² = 2/η. `threshold` is the value of `curvature` at which the update along it is at its limit.

    Args:
        step: Which step's batch; None: the last one's.
    """

    cost = Cost(forwards=3, backwards=3, products=2)

    def __init__(self, step: int | None = None) -> None:
        self.step = step

    def look(self, point: LivePoint) -> Mapping[str, Any]:
        """Look.

        Args:
            point: The live run.

        Returns:
            curvature · threshold · ratio, the curvature along the update over its own limit: above 1 the step
            overshoots along it · rate, the largest learning rate in force.
        """
        batch = chosen(point, self.step)
        hessian = Hessian(objective(point, [batch]), check=False)
        space = hessian.space
        row = space.flatten(gradient(point, batch))
        try:
            curvature = directional_curvature(hessian, row).value
        except BadInput as error:
            raise NotApplicable(str(error)) from error
        rate = point.rate * max(float(group.get("lr", 0.0)) for group in point.optimizer.param_groups)
        found: dict[str, Any] = {"curvature": curvature, "rate": rate}
        try:
            scaled: Preconditioning = preconditioning(point.optimizer, space)
            along = directional_curvature(scaled.operator(hessian), scaled.root(row[None])[0]).value
        except (NotApplicable, BadInput) as reason:
            return {**found, "threshold": plain(2 / rate) if rate > 0 else None, "ratio": None, "why": str(reason)}
        ratio = point.rate * along / scaled.threshold
        limit = curvature / ratio if curvature > 0 and ratio > 0 else 2 / rate if rate > 0 else None
        return {**found, "threshold": None if limit is None else plain(limit), "ratio": ratio}
