"""Sharpness along an update by forward passes alone, for models whose second derivatives are out of reach."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from dynaxx.core.chart import Estimate
from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.space import Space

REACH = 16.0
"""Largest factor between two learning rates that are tried one after the other."""
TOLERANCE = 0.01
"""The search stops where the next correction of η_c would be relatively smaller."""


def critical_sharpness(
    objective: Objective, direction: Float[Tensor, " n"], eta0: float, *, forwards: int = 8
) -> Estimate:
    """λ_c = 2/η_c, η_c being a learning rate along the update direction from which the loss rises (arXiv 2601.16979).

    On a quadratic L(θ − ηd) − L(θ) = −η gᵀd + η² dᵀHd/2, so λ_c = dᵀHd/gᵀd: for gradient descent, d = g, that is
    gᵀHg/‖g‖² ≤ λ₁; for a preconditioned step d = P⁻¹g it is at most λ₁(P⁻¹H). The rate of change (L(θ − ηd) − L(θ))/η
    is linear in η there, so secants find its root η_c in four forwards; elsewhere five or six are usual. What is found
    is a crossing; that none is nearer cannot be said from so few values.

    Args:
        objective: The loss and the point; its weights are not written.
        direction: d, shape (n,), of the update θ ← θ − ηd: what the optimizer did, over −η.
        eta0: The learning rate tried first, the present one.
        forwards: At most so many passes over the objective's batches, 4 or more.

    Returns:
        λ_c; its error is the last correction of the search.

    Raises:
        BadInput: A number breaks its rule, or the loss is not finite at the point.
        NotApplicable: The direction is zero, the loss rises at every rate tried, or falls at every one; or parameters
            are sharded.

    Example:
        >>> square = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(square.weight, 1.0)
        >>> objective = Objective(square, lambda m, x: 3 * m(x).square().mean() / 2, [torch.ones(1, 1)])
        >>> str(critical_sharpness(objective, torch.tensor([3.0]), eta0=0.1))[:1]
        '3'
    """
    if not (eta0 > 0 and math.isfinite(eta0)) or forwards < 4:
        raise BadInput(
            f"critical_sharpness(eta0=..., forwards=...) must be above 0 and at least 4. Got {eta0} and {forwards}."
        )
    if objective.sharded:
        raise NotApplicable(
            "critical_sharpness(objective): parameters are sharded, and moved copies of them are not. "
            "Use directional_curvature, by differences of gradients."
        )
    space = Space(objective.parameters, objective.names)
    if not bool(torch.isfinite(direction).all()):
        raise BadInput("critical_sharpness(direction=...) must be finite. Look for NaN in the last update.")
    if float(space.norms(direction[None])[0]) == 0:
        raise NotApplicable("critical_sharpness(direction=...): the update is zero, so there is no direction.")
    point = space.flatten(objective.parameters)
    here = _loss(objective, space, point)
    if not math.isfinite(here):
        objective.explain_not_finite()
    search = _Search(eta0)
    for _ in range(forwards - 1):
        moved = _loss(objective, space, point - search.eta * direction.to(point))
        if search.tried((moved - here) / search.eta):
            break
    if search.correction > TOLERANCE and (search.low == 0 or math.isinf(search.high)):
        went = "rises" if search.low == 0 else "falls"
        at = search.high if search.low == 0 else search.low
        raise NotApplicable(
            f"critical_sharpness: the loss {went} along the direction at each of {forwards - 1} learning rates, "
            f"{'down' if search.low == 0 else 'up'} to {at:.3g}, so it has no crossing there. "
            f"Give eta0 nearer to it{', and check the direction: θ ← θ − ηd' if search.low == 0 else ''}."
        )
    value = 2 / search.eta
    return Estimate(value=value, error=value * search.correction, about="critical sharpness, 2/η_c along the update")


def _loss(objective: Objective, space: Space, point: Tensor) -> float:
    with torch.no_grad(), objective.at(space.split(point)):
        return objective.value()


class _Search:
    """The root of a rate of change r(η) that is negative at first: secants, kept within what is known of the root."""

    def __init__(self, eta: float) -> None:
        self.eta = eta
        self.low, self.high = 0.0, math.inf
        self.correction = math.inf
        self._last: tuple[float, float] | None = None

    def tried(self, rate: float) -> bool:
        """Take the rate at `eta`, move `eta` on; whether it has settled."""
        here = self.eta
        if rate <= 0:  # a loss that is not finite counts as risen
            self.low = max(self.low, here)
        else:
            self.high = min(self.high, here)
        if rate == 0:
            self.high = here
        self.eta = self._next(here, rate)
        self.correction = abs(self.eta - here) / self.eta
        self._last = (here, rate) if math.isfinite(rate) else None
        return self.correction <= TOLERANCE

    def _next(self, here: float, rate: float) -> float:
        if rate == 0:
            return here
        least = max(self.low, here / REACH)
        most = min(self.high, here * REACH)
        if self._last is None or not math.isfinite(rate):
            guess = here * 2 if rate < 0 else here / 2
            return guess if least < guess < most else (self.low + self.high) / 2
        before, earlier = self._last
        slope = (rate - earlier) / (here - before)
        if slope > 0:
            guess = here - rate / slope
            if least < guess < most:
                return guess
        if math.isinf(self.high):
            return most
        return math.sqrt(least * self.high) if self.low == 0 else (self.low + self.high) / 2
