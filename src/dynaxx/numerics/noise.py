"""How the expected loss rises under Gaussian noise on the weights, and the noise that a given rise allows."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from dynaxx.core.chart import Estimate
from dynaxx.core.displaced import Displaced
from dynaxx.core.task import derive_seed
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.space import Space


def noisy_values(
    point: Displaced, sigma: float, *, pairs: int, scale: Float[Tensor, " n"] | None = None, seed: int = 0
) -> np.ndarray:
    """(L(θ + σDz) + L(θ − σDz))/2 for standard normal z: the odd orders of the loss cancel within each pair.

    Args:
        point: Where; it is moved and put back.
        sigma: Standard deviation of the noise, in units of the weights for D = 1, a ratio for D = |w|.
        pairs: How many z; each costs two forwards. The j-th depends on the seed and on j alone.
        scale: The diagonal of D, shape (n,); None: 1.
        seed: Chooses them.

    Returns:
        Shape (pairs,), in units of the loss.
    """
    space = Space(point.parameters, point.names)
    centre = space.flatten(point.parameters)
    found = np.empty(pairs)
    try:
        for j in range(pairs):
            step = sigma * space.random(1, seed=derive_seed(seed, "noise", j))[0]
            if scale is not None:
                step *= scale
            sides: list[float] = []
            for moved in (centre + step, centre - step):
                point.move(space.split(moved))
                sides.append(point.value())
            found[j] = sum(sides) / 2
    finally:
        point.move(space.split(centre))
    return found


def average_rise(
    point: Displaced, sigma: float, *, pairs: int = 8, scale: Float[Tensor, " n"] | None = None, seed: int = 0
) -> Estimate:
    """E L(θ + σDz) − L(θ) over standard normal z: average-case sharpness; σ² tr(DHD)/2 to second order.

    Args:
        point: Where; it is moved and put back.
        sigma: Standard deviation of the noise.
        pairs: Antithetic pairs of noise vectors, at least 2.
        scale: The diagonal of D, shape (n,); None: 1.
        seed: Chooses them.

    Returns:
        The rise with its standard error over pairs, in units of the loss.

    Raises:
        BadInput: σ is not positive or there are fewer than two pairs.
    """
    if not (sigma > 0 and pairs >= 2):
        raise BadInput(f"average_rise(sigma, pairs) needs sigma > 0 and at least 2 pairs. Got {sigma} and {pairs}.")
    rises = noisy_values(point, sigma, pairs=pairs, scale=scale, seed=seed) - point.value()
    return Estimate(value=float(rises.mean()), error=float(rises.std(ddof=1)) / math.sqrt(pairs))


def largest_noise(
    rise: Callable[[float], float], level: float, start: float, *, accuracy: float = 0.01, evaluations: int = 24
) -> float:
    """The largest σ up to which rise(σ) ≤ level, by doubling or halving to a bracket and bisecting log σ.

    Args:
        rise: σ → expected rise; with common noise it is a smooth function.
        level: The rise that is allowed.
        start: First guess of σ.
        accuracy: Relative width of the last bracket.
        evaluations: Most calls of `rise`.

    Returns:
        The lower end of the last bracket, where the rise was seen to be within the level.

    Raises:
        BadInput: The level or the first guess is not positive.
        NotApplicable: No bracket within the calls allowed: the loss does not rise, or rises at once.

    Example:
        >>> round(largest_noise(lambda sigma: 2 * sigma**2, 0.02, 1.0, accuracy=1e-6, evaluations=40), 5)
        0.1
    """
    if not (level > 0 and start > 0):
        raise BadInput(f"largest_noise(level, start) must be positive. Got {level} and {start}.")
    low = high = start
    left = evaluations - 1
    within = rise(start) <= level
    while left and (low == high):
        trial = low * 2 if within else high / 2
        left -= 1
        if (rise(trial) <= level) == within:
            low = high = trial
        else:
            low, high = min(low, trial), max(high, trial)
    if low == high:
        side = "rises less" if within else "rises more"
        raise NotApplicable(f"The loss {side} than {level:g} for every noise tried, the last with σ = {low:.3g}.")
    while left and high > low * (1 + accuracy):
        middle = math.sqrt(low * high)
        left -= 1
        low, high = (middle, high) if rise(middle) <= level else (low, middle)
    return low
