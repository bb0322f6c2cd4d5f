"""Half a cosine over the whole training, behind a linear warm-up."""

from dataclasses import dataclass

from dynaxx.core.methods import Curve
from dynaxx.schedules._shape import between, check, counted, half_cosine, progress, rise


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine(Curve):
    """final + (1 − final) · ½ (1 + cos π x), where x is the share of the steps behind the warm-up that is done.

    Equals torch's CosineAnnealingLR with T_max = steps where there is no warm-up (Loshchilov and Hutter 2017).

    Args:
        steps: Planned optimizer steps.
        warmup: Linear rise over the first steps: a number of them, or a share as a float.
        final: Share of the peak at the end.

    Raises:
        BadInput: An option is out of range.

    Example:
        >>> [round(Cosine(steps=8, final=0.1).factor(t), 3) for t in (0, 4, 8)]
        [1.0, 0.55, 0.1]
    """

    steps: int
    warmup: int | float = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        check("Cosine", self.steps, self.warmup, self.final)

    def factor(self, step: int) -> float:
        """Rise, then half a cosine to `final`."""
        warm = counted("Cosine", "warmup", self.warmup, self.steps)
        if step < warm:
            return rise(step, warm)
        return between(1.0, self.final, half_cosine(progress(step, warm, self.steps)))
