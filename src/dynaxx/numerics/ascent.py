"""Worst-case sharpness: how far the loss can rise within a ball around the weights."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dynaxx.core.displaced import Displaced
from dynaxx.errors import BadInput
from dynaxx.numerics.space import Space


@dataclass(frozen=True, slots=True, kw_only=True)
class Ascent:
    """What an ascent within the ball found; both are lower bounds of the largest rise.

    Args:
        one_step: Rise after the one step of sharpness-aware minimisation, in units of the loss.
        rise: The largest rise met.
        forwards: Losses taken, over all batches.
        backwards: Gradients taken, over all batches.
    """

    one_step: float
    rise: float
    forwards: int
    backwards: int


def worst_case(
    point: Displaced,
    radius: float,
    *,
    scale: Float[Tensor, " n"] | None = None,
    steps: int = 10,
    seed: int = 0,
) -> Ascent:
    """Largest L(θ + Du) − L(θ) over ‖u‖ ≤ ρ, by projected ascent along normalised gradients.

    The first step, u = ρ D∇L/‖D∇L‖, is that of SAM (Foret et al. 2021) for D = 1 and of ASAM (Kwon et al. 2021) for
    D = |w|. Further steps begin with length ρ, are projected onto the ball, and are halved whenever the loss does not
    rise. On a quadratic at its minimum this is a power iteration and ends at ρ²λ₁/2.

    Args:
        point: Where; it is moved and put back.
        radius: ρ, in units of the weights for D = 1, a ratio for D = |w|.
        scale: The diagonal of D, shape (n,); None: 1.
        steps: Gradient steps, the first one among them.
        seed: Chooses the direction where the gradient is zero.

    Returns:
        The rise after one step and the largest one.

    Raises:
        BadInput: The radius or the number of steps is not positive, or the loss at the point is not finite.
    """
    if not (radius > 0 and steps >= 1):
        raise BadInput(f"worst_case(radius, steps) must be positive. Got {radius} and {steps}.")
    space = Space(point.parameters, point.names)
    centre = space.flatten(point.parameters)
    d = torch.ones_like(centre) if scale is None else scale

    def at(u: Tensor) -> float:
        point.move(space.split(centre + d * u))
        return point.value()

    def uphill() -> Tensor:
        slope = d * space.flatten(point.gradient())
        norm = slope.norm()
        return slope / norm if norm > 0 else slope

    base = point.value()
    if not math.isfinite(base):
        point.explain_not_finite()
    try:
        direction = uphill()
        if not direction.any():
            direction = space.random(1, seed=seed)[0]
            direction /= direction.norm()
        u = radius * direction
        one_step = highest = at(u) - base
        length, backwards = radius, 1
        direction = uphill() if math.isfinite(highest) and steps > 1 else None
        while direction is not None and backwards + 1 <= steps:
            backwards += 1
            trial = u + length * direction
            trial *= min(1.0, radius / float(trial.norm()))
            found = at(trial) - base
            if found > highest:
                u, highest = trial, found
                direction = uphill() if backwards < steps else None
            else:
                length /= 2
    finally:
        point.move(space.split(centre))
    return Ascent(one_step=one_step, rise=highest, forwards=1 + backwards, backwards=backwards)
