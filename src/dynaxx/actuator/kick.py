"""Raise the learning rates by a factor that dies away: out of a wide plateau."""

import math
from collections.abc import Mapping
from typing import Any

from dynaxx.core.contracts import Actuation
from dynaxx.core.events import StepView
from dynaxx.core.rates import RateFactors
from dynaxx.errors import BadInput


class Kick(Actuation):
    """η ← η · f^(1 − t / T) in the t-th step of T, t from 0: f at once, and back to 1 by equal ratios.

    Put back right after each step; the scheduler never sees it. A jump that decays is that of warm restarts (Loshchilov
    and Hutter 2017), on top of the loop's own schedule.

    Args:
        factor: f, above 1 and at most 10; 2 to 5 is usual, beyond 10 a kick is a restart from elsewhere.
        over: T, optimizer steps.

    Raises:
        BadInput: An option is out of range.

    Example:
        >>> kick = Kick(factor=4.0, over=2)
        >>> [kick.at(t) for t in (0, 1, 2)]
        [4.0, 2.0, 1.0]
    """

    of_gradient = False

    def __init__(self, factor: float, over: int = 100) -> None:
        if not (math.isfinite(factor) and 1 < factor <= 10):
            raise BadInput(f"apply('kick', factor=...) must be above 1 and at most 10. Got {factor}.")
        if not isinstance(over, int) or over < 1:
            raise BadInput(f"apply('kick', over=...) must be an integer of at least 1 step. Got {over!r}.")
        self.factor, self.over = float(factor), over
        self._taken = 0

    def __str__(self) -> str:
        return f"learning rates × {self.factor:g}, dying away over {self.over} steps"

    def at(self, taken: int) -> float:
        """The factor after so many steps of it.

        Args:
            taken: Steps taken under it.

        Returns:
            Between f and 1.
        """
        return self.factor ** max(0.0, 1.0 - taken / self.over)

    def before(self, step: StepView) -> None:
        """Put the factor into the step; the actuator applies the product of all of them."""
        step.rates = step.rates * RateFactors(reactive=self.at(self._taken))

    def after(self, step: StepView) -> None:
        """Count it."""
        del step
        self._taken += 1

    def state_dict(self) -> dict[str, Any]:
        """Steps taken under it."""
        return {"taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._taken = int(state["taken"])
