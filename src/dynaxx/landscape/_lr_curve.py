"""Reading learning-rate curves: smoothing, descent that is more than noise, the basin of the rates looked at."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

WIDTH = 2.0
"""Standard deviation of the smoothing kernel, in steps: at the default twelve steps a decade, a sixth of a decade."""
CLEAR = 5.0
"""Standard errors by which a descent must exceed noise. The lowest of some ten independent stretches of pure noise is
that far down less than once in 10⁵ sweeps, were the errors normal; few samples and tails leave room."""
LEAST_DESCENT = 1e-3
"""Share of the starting loss that a descent must have: less is rounding, or nothing to train for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """What one smoothed curve of loss against an exponentially rising rate shows.

    Args:
        start: Loss at rates too small to matter.
        best: Lowest smoothed loss.
        noise: Standard error of `start − best`.
        steepest: Index of the steepest descent by log η.
        lowest: Index of the lowest smoothed loss.
        returned: First index behind it with the loss above `start`; None: it stays below.
    """

    start: float
    best: float
    noise: float
    steepest: int
    lowest: int
    returned: int | None

    @property
    def clear(self) -> bool:
        """Whether there is a descent to speak of."""
        return self.start - self.best > max(CLEAR * self.noise, LEAST_DESCENT * abs(self.start))


def smoothed(losses: np.ndarray, width: float = WIDTH) -> np.ndarray:
    """A running mean with normal weights, those beyond an end left out; it does not lag, as an exponential mean does.

    Args:
        losses: Shape (steps,).
        width: Standard deviation of the weights, in steps.

    Returns:
        Shape (steps,).

    Example:
        >>> smoothed(np.array([2.0, 2.0, 2.0])).tolist()
        [2.0, 2.0, 2.0]
    """
    weights = _weights(len(losses), width)
    return (weights @ losses) / weights.sum(1)


def descent(losses: np.ndarray, width: float = WIDTH) -> Descent:
    """Read a curve of a sweep.

    The noise is that of the first quarter, where the rate is too small to matter: its standard deviation, passed
    through the kernel.

    Args:
        losses: One per rate, rates rising, shape (steps,), finite, at least 8.
        width: Of the kernel, in steps.

    Returns:
        What is seen.
    """
    curve, flat = smoothed(losses, width), max(4, len(losses) // 4)
    start, spread = float(losses[:flat].mean()), float(losses[:flat].std(ddof=1))
    lowest = int(curve.argmin())
    weights = _weights(len(losses), width)[lowest]
    kept = float(np.square(weights / weights.sum()).sum())
    # Before a tenth of the descent is done, noise alone makes the steepest slopes.
    begun = np.flatnonzero(curve[: lowest + 1] > start - (start - curve[lowest]) / 10)
    first = int(begun[-1]) if len(begun) else 0
    above = np.flatnonzero(curve[lowest:] > start)
    return Descent(
        start=start,
        best=float(curve[lowest]),
        noise=spread * math.sqrt(kept + 1 / flat),
        steepest=first + int(np.gradient(curve)[first : lowest + 1].argmin()),
        lowest=lowest,
        returned=lowest + int(above[0]) if len(above) else None,
    )


def search(look: Callable[[int], float], most: int, lowest: int, highest: int) -> list[int]:
    """Bracket the minimum over integers from 0: strides of 2 downhill until the middle of three is best, then of 1.

    Args:
        look: k → loss, infinite where it diverged.
        most: Calls of it.
        lowest: Smallest k.
        highest: Largest k.

    Returns:
        The k looked at, increasing.

    Example:
        >>> search(lambda k: (k - 3.2) ** 2, 8, -9, 9)
        [-2, 0, 2, 3, 4, 5, 6]
    """
    seen: dict[int, float] = {0: look(0)}

    def visit(k: int) -> None:
        if k not in seen and len(seen) < most and lowest <= k <= highest:
            seen[k] = look(k)

    for stride in (2, 1):
        best = None
        while best != (best := min(seen, key=lambda k: (seen[k], k))):
            visit(best - stride)
            visit(best + stride)
    return sorted(seen)


def basin(places: np.ndarray, losses: np.ndarray, level: float) -> tuple[float, float]:
    """The stretch around the lowest point within which a curve, straight between its points, stays below a level.

    Args:
        places: Increasing, shape (points,).
        losses: Shape (points,); infinite where diverged, at least one finite.
        level: Above the lowest loss.

    Returns:
        Both ends; a first or last point, or one beside divergence, where the level is not crossed before.

    Example:
        >>> basin(np.array([0.0, 1.0, 2.0]), np.array([3.0, 1.0, 2.0]), 1.5)
        (0.75, 1.5)
    """
    ends: list[float] = []
    for way in (-1, 1):
        i = int(np.argmin(losses))
        while 0 <= i + way < len(losses) and losses[i + way] <= level:
            i += way
        share = 0.0
        if 0 <= i + way < len(losses) and math.isfinite(losses[i + way]):
            share = float((level - losses[i]) / (losses[i + way] - losses[i]))
        ends.append(float(places[i]) + (share * float(places[i + way] - places[i]) if share else 0.0))
    return ends[0], ends[1]


def _weights(n: int, width: float) -> np.ndarray:
    place = np.arange(n)
    return np.exp(-np.square((place[:, None] - place) / width) / 2)
