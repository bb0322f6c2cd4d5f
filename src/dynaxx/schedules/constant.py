"""Constant rate, behind a linear warm-up."""

from dataclasses import dataclass

from dynaxx.core.methods import Curve
from dynaxx.schedules._shape import check, counted, rise


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant(Curve):
    """1 from the end of the warm-up on.

    Args:
        steps: Planned optimizer steps.
        warmup: Linear rise over the first steps: a number of them, or a share as a float.

    Raises:
        BadInput: An option is out of range.

    Example:
        >>> [Constant(steps=10, warmup=4).factor(t) for t in (0, 1, 3, 9)]
        [0.25, 0.5, 1.0, 1.0]
    """

    steps: int
    warmup: int | float = 0

    def __post_init__(self) -> None:
        check("Constant", self.steps, self.warmup, 1.0)

    def factor(self, step: int) -> float:
        """Rise, then 1."""
        warm = counted("Constant", "warmup", self.warmup, self.steps)
        return rise(step, warm) if step < warm else 1.0
