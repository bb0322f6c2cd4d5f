"""One cycle: half a cosine up over the first tenth, half a cosine down over the rest."""

from dataclasses import dataclass

from dynaxx.core.methods import Curve
from dynaxx.errors import BadInput
from dynaxx.schedules._shape import between, check, counted, half_cosine, progress


@dataclass(frozen=True, slots=True, kw_only=True)
class OneCycle(Curve):
    """From `start` to 1 over the warm-up and on to `final`, each along half a cosine; the last update has `final`.

    Equals torch's OneCycleLR with `pct_start` = warmup, `div_factor` = 1 / start, `final_div_factor` = start / final.
    Its defaults are taken, except for the length of the warm-up, 30 % there. Momentum is not cycled (Smith 2018).

    Args:
        steps: Planned optimizer steps.
        warmup: The rise: a number of steps, or a share as a float.
        start: Share of the peak in the first update.
        final: Share of the peak in the last update.

    Raises:
        BadInput: An option is out of range.

    Example:
        >>> [round(OneCycle(steps=101, warmup=11, start=0.1, final=0.0).factor(t), 3) for t in (0, 5, 10, 55, 100)]
        [0.1, 0.55, 1.0, 0.5, 0.0]
    """

    steps: int
    warmup: int | float = 0.1
    start: float = 1 / 25
    final: float = 1 / 25e4

    def __post_init__(self) -> None:
        check("OneCycle", self.steps, self.warmup, self.final)
        if not 0 <= self.start <= 1:
            raise BadInput(f"OneCycle(start=...) must be a share of the peak in [0, 1]. Got {self.start}.")

    def factor(self, step: int) -> float:
        """Up, then down."""
        top = max(0, counted("OneCycle", "warmup", self.warmup, self.steps) - 1)
        if step < top:
            return between(self.start, 1.0, half_cosine(progress(step, 0, top)))
        return between(1.0, self.final, half_cosine(progress(step, top, self.steps - 1)))
