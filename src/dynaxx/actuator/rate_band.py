"""Hold the learning rate within bounds for a while, wherever the loop's own schedule takes it."""

import math

from dynaxx.core.contracts import Actuation
from dynaxx.core.events import StepView
from dynaxx.core.rates import RateFactors
from dynaxx.errors import BadInput


class RateBand(Actuation):
    """η ← min(max(η, least), most) for the step; put back right after it.

    The largest group decides, and all groups keep their proportions. Where the schedule stays within the bounds nothing
    changes, so a jump is undone without knowing when it ends. The scheduler never sees it. A rate that is a tensor on
    an accelerator is waited for.

    Args:
        least: Smallest rate of the largest group; 0: none. A rate of exactly 0 is left alone.
        most: Its largest rate; None: none.

    Raises:
        BadInput: A bound is out of range.

    Example:
        `run.apply("rate_band", most=0.1)`: a restart to 1.0 is held at 0.1.
    """

    of_gradient = False

    def __init__(self, least: float = 0.0, most: float | None = None) -> None:
        if not (math.isfinite(least) and least >= 0):
            raise BadInput(f"apply('rate_band', least=...) must be at least 0 and finite. Got {least}.")
        if most is not None and not (math.isfinite(most) and most > 0 and most >= least):
            raise BadInput(f"apply('rate_band', most=...) must be positive, finite and at least {least:g}. Got {most}.")
        self.least, self.most = float(least), None if most is None else float(most)

    def __str__(self) -> str:
        return f"learning rate within [{self.least:g}, {'∞' if self.most is None else format(self.most, 'g')}]"

    def before(self, step: StepView) -> None:
        """Put the factor into the step; the actuator applies the product of all of them."""
        rate = max((float(group["lr"]) for group in step.optimizer.param_groups if "lr" in group), default=0.0)
        if rate > 0:
            held = min(max(rate, self.least), math.inf if self.most is None else self.most)
            step.rates = step.rates * RateFactors(reactive=held / rate)
