"""Average over the ends of a cyclic rate's cycles, where it stands lowest."""

import math
from typing import ClassVar

from dynaxx.averaging._average import RunningAverage, Source
from dynaxx.core.arguments import at_least
from dynaxx.errors import BadInput


class Cyclic(RunningAverage):
    """The mean of the weights behind the last step of each cycle of a cyclic learning rate.

    Cycles are `period` steps long, or each `growth` times as long as the one before, as those of warm restarts.

    Args:
        model: The model, or names and parameters; frozen parameters are left out.
        period: Steps of the first cycle (`T_0` of torch's CosineAnnealingWarmRestarts, in optimizer steps).
        start: Steps before the first cycle begins, such as a warm-up.
        growth: Length of a cycle over that of the one before (`T_mult`).

    Raises:
        BadInput: A number is out of its range.

    Example:
        `Cyclic(model, period=100, growth=2)` takes the weights behind steps 100, 300, 700, ….

    Reference: Izmailov et al. 2018 (cyclical rate); Loshchilov & Hutter 2017 (restarts, growth).
    """

    memory: ClassVar[str] = "1 × parameters in float32"

    def __init__(self, model: Source, *, period: int = 1000, start: int = 0, growth: float = 1) -> None:
        if not growth >= 1:
            raise BadInput(f"Cyclic(growth=...) must be at least 1: cycles do not shrink. Got {growth!r}.")
        self._period, self._start = at_least("Cyclic", "period", period, 1), at_least("Cyclic", "start", start, 0)
        self._growth = growth
        super().__init__(model)

    def share(self, step: int) -> float | None:
        """1/k behind the k-th cycle."""
        return 1 / (self.count + 1) if step == self._end(self.count + 1) else None

    def _end(self, cycle: int) -> int:
        lengths = cycle if self._growth == 1 else (self._growth**cycle - 1) / (self._growth - 1)
        return self._start + math.floor(self._period * lengths + 0.5)
