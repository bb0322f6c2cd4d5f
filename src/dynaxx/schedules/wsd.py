"""Warm-up, stable, decay: constant for most of the training, then a cool-down."""

from dataclasses import dataclass
from typing import Literal

from dynaxx.core.methods import Curve
from dynaxx.errors import BadInput
from dynaxx.schedules._shape import between, check, counted, progress, rise


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupStableDecay(Curve):
    """Linear warm-up, then 1, then over the last d steps final + (1 − final) s(x) with s(x) = 1 − √x or 1 − x.

    The training may be prolonged from the stable part: only the cool-down must be repeated. Cool-downs over a fifth of
    the steps by 1 − √x matched a tuned cosine (Hägele et al. 2024), hence the defaults.

    Args:
        steps: Planned optimizer steps.
        warmup: Linear rise over the first steps: a number of them, or a share as a float.
        decay: The cool-down: a number of steps, or a share; what the warm-up leaves at most.
        shape: "sqrt": 1 − √x; "linear": 1 − x.
        final: Share of the peak at the end; the rate never falls below it on the way.

    Raises:
        BadInput: An option is out of range.

    Example:
        >>> [WarmupStableDecay(steps=100, warmup=10, decay=20, shape="linear").factor(t) for t in (0, 9, 80, 90, 100)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
    """

    steps: int
    warmup: int | float = 0
    decay: int | float = 0.2
    shape: Literal["sqrt", "linear"] = "sqrt"
    final: float = 0.0

    def __post_init__(self) -> None:
        check("WarmupStableDecay", self.steps, self.warmup, self.final)
        counted("WarmupStableDecay", "decay", self.decay, self.steps)
        if self.shape not in ("sqrt", "linear"):
            raise BadInput(f"WarmupStableDecay(shape=...) must be 'sqrt' or 'linear'. Got {self.shape!r}.")

    def factor(self, step: int) -> float:
        """Rise, stay, cool down."""
        warm = counted("WarmupStableDecay", "warmup", self.warmup, self.steps)
        if step < warm:
            return rise(step, warm)
        start = max(warm, self.steps - counted("WarmupStableDecay", "decay", self.decay, self.steps))
        if step < start:
            return 1.0
        done = progress(step, start, self.steps)
        return between(1.0, self.final, 1 - (done**0.5 if self.shape == "sqrt" else done))
