"""Linear decay over the whole training, behind a linear warm-up."""

from dataclasses import dataclass

from dynaxx.core.methods import Curve
from dynaxx.schedules._shape import between, check, counted, progress, rise


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearDecay(Curve):
    """1 − (1 − final) x, where x is the share of the steps behind the warm-up that is done.

    Equals torch's LinearLR from 1 to `final` where there is no warm-up. In a comparison over many tasks the best of the
    fixed curves at a known length (Defazio et al. 2023).

    Args:
        steps: Planned optimizer steps.
        warmup: Linear rise over the first steps: a number of them, or a share as a float.
        final: Share of the peak at the end.

    Raises:
        BadInput: An option is out of range.

    Example:
        >>> [LinearDecay(steps=10, warmup=2).factor(t) for t in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """

    steps: int
    warmup: int | float = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        check("LinearDecay", self.steps, self.warmup, self.final)

    def factor(self, step: int) -> float:
        """Rise, then a straight line to `final`."""
        warm = counted("LinearDecay", "warmup", self.warmup, self.steps)
        if step < warm:
            return rise(step, warm)
        return between(1.0, self.final, 1 - progress(step, warm, self.steps))
