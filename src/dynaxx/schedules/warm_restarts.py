"""Half cosines that restart at the peak, each cycle longer than the last."""

import math
from dataclasses import dataclass

from dynaxx.core.methods import Curve
from dynaxx.errors import BadInput
from dynaxx.schedules._shape import between, check, counted, half_cosine, progress, rise


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmRestarts(Curve):
    """final + (1 − final) · ½ (1 + cos π x), where x is the done share of the cycle in progress.

    Cycle k takes `cycle · growth^k` steps. Equals torch's CosineAnnealingWarmRestarts where there is no warm-up, but
    holds `final` from the planned end on (Loshchilov and Hutter 2017). The weights at the end of each cycle are an
    annealed solution. The default share makes three cycles, 1 + 2 + 4 sevenths, end with the training.

    Args:
        steps: Planned optimizer steps.
        warmup: Linear rise over the first steps: a number of them, or a share as a float.
        cycle: The first cycle: a number of steps, or a share of those behind the warm-up, rounded up.
        growth: By what each cycle is longer than the one before; an integer of at least 1.
        final: Share of the peak at the end of a cycle.

    Raises:
        BadInput: An option is out of range.

    Example:
        >>> [round(WarmRestarts(steps=70).factor(t), 3) for t in (0, 5, 10, 20, 30, 50, 70)]
        [1.0, 0.5, 1.0, 0.5, 1.0, 0.5, 0.0]
    """

    steps: int
    warmup: int | float = 0
    cycle: int | float = 1 / 7
    growth: int = 2
    final: float = 0.0

    def __post_init__(self) -> None:
        check("WarmRestarts", self.steps, self.warmup, self.final)
        if not 0 < self.cycle <= (1 if isinstance(self.cycle, float) else self.steps):
            raise BadInput(
                f"WarmRestarts(cycle=...) must be a share in (0, 1] or in [1, {self.steps}] steps. Got {self.cycle}."
            )
        if isinstance(self.growth, bool) or not isinstance(self.growth, int) or self.growth < 1:
            raise BadInput(f"WarmRestarts(growth=...) must be an integer of at least 1. Got {self.growth!r}.")

    def factor(self, step: int) -> float:
        """Rise, then cycle."""
        warm = counted("WarmRestarts", "warmup", self.warmup, self.steps)
        if step < warm:
            return rise(step, warm)
        if step >= self.steps:
            return self.final
        length = math.ceil(self.cycle * (self.steps - warm)) if isinstance(self.cycle, float) else self.cycle
        start = warm
        while step >= start + length:
            start, length = start + length, length * self.growth
        return between(1.0, self.final, half_cosine(progress(step, start, start + length)))
