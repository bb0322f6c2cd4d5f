"""A power of the remaining steps: polynomial decay, or a cool-down of that shape at the end."""

from dataclasses import dataclass

from dynaxx.core.methods import Curve
from dynaxx.errors import BadInput
from dynaxx.schedules._shape import between, check, counted, progress, rise


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerDecay(Curve):
    """min(1, final + (1 − final) · (r / d)^p) with r steps to go and a decay over the last d.

    Equals torch's PolynomialLR where the decay takes all steps and there is no warm-up and no final rate. The power 1.2
    is that of the cool-down found best in the public optimizer speed-runs on GPT-2 (modded-nanogpt, track 3, 2026).

    Args:
        steps: Planned optimizer steps.
        warmup: Linear rise over the first steps: a number of them, or a share as a float.
        decay: The last steps, over which the rate falls: a number of them, or a share; what the warm-up leaves at most.
        power: p > 0; 1 is a straight line.
        final: Share of the peak at the end.

    Raises:
        BadInput: An option is out of range.

    Example:
        >>> [PowerDecay(steps=10, decay=4, power=2.0).factor(t) for t in (0, 6, 8, 10)]
        [1.0, 1.0, 0.25, 0.0]
    """

    steps: int
    warmup: int | float = 0
    decay: int | float = 1.0
    power: float = 1.2
    final: float = 0.0

    def __post_init__(self) -> None:
        check("PowerDecay", self.steps, self.warmup, self.final)
        counted("PowerDecay", "decay", self.decay, self.steps)
        if not 0 < self.power < float("inf"):
            raise BadInput(f"PowerDecay(power=...) must be positive and finite. Got {self.power}.")

    def factor(self, step: int) -> float:
        """Rise, stay at 1, then fall as a power of what remains."""
        warm = counted("PowerDecay", "warmup", self.warmup, self.steps)
        if step < warm:
            return rise(step, warm)
        start = max(warm, self.steps - counted("PowerDecay", "decay", self.decay, self.steps))
        if step < start:
            return 1.0
        return between(1.0, self.final, (1 - progress(step, start, self.steps)) ** self.power)
