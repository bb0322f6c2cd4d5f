"""Inverse square root of the step, behind a linear warm-up: needs no planned end."""

from dataclasses import dataclass

from dynaxx.core.methods import Curve
from dynaxx.errors import BadInput
from dynaxx.schedules._shape import check, counted, rise


@dataclass(frozen=True, slots=True, kw_only=True)
class InverseSqrt(Curve):
    """min(t / w, √(w / t)) in the t-th update with a warm-up of w (Vaswani et al. 2017).

    The default warm-up is that paper's, 4,000 of 100,000 steps.

    Args:
        steps: Planned optimizer steps; beyond them the last value holds.
        warmup: w: a number of steps, or a share as a float; at least one step.
        final: The share of the peak below which the rate does not fall.

    Raises:
        BadInput: An option is out of range.

    Example:
        >>> [InverseSqrt(steps=1000, warmup=10).factor(t) for t in (0, 9, 39, 159)]
        [0.1, 1.0, 0.5, 0.25]
    """

    steps: int
    warmup: int | float = 0.04
    final: float = 0.0

    def __post_init__(self) -> None:
        check("InverseSqrt", self.steps, self.warmup, self.final)
        if self.warmup == 0:
            raise BadInput("InverseSqrt(warmup=...) must be at least one step: it sets the scale of the decay. Got 0.")

    def factor(self, step: int) -> float:
        """Rise, then fall as 1 / √t."""
        warm = max(1, counted("InverseSqrt", "warmup", self.warmup, self.steps))
        if step < warm:
            return rise(step, warm)
        return max(self.final, (warm / min(step + 1, self.steps)) ** 0.5)
