"""Hold the learning rate within bounds for a while, wherever the loop's own schedule takes it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dynaxx.core.contracts import Actuation
from dynaxx.core.events import StepView
from dynaxx.core.rates import RateFactors
from dynaxx.errors import BadInput

RETURN, LEAST = 0.7, 2.0
"""Share of a raise that one fall of the rate has to undo to end it, and the smallest such fall: a bump comes back at
once, by what it rose; a milestone of a schedule that was thrown up falls by less."""


class RateBand(Actuation):
    """η ← min(max(η, least), most) for the step; put back right after it.

    The largest group decides, and all groups keep their proportions. Where the schedule stays within the bounds nothing
    changes, so a jump is undone without knowing when it comes. The scheduler never sees it. A rate that is a tensor on
    an accelerator is waited for.

    Args:
        least: Smallest rate of the largest group; 0: none. A rate of exactly 0 is left alone.
        most: Its largest rate; None: none.
        shape: Whether the schedule keeps its shape after it has exceeded `most`: η ← η · most / (its highest η so far),
            so that a decay still decays. A raise that is taken back at once is over, and forgotten.
        falls: Two steps between which `least` falls evenly to 0; None: it holds. A rate that was held up and is let
            go at once leaves the weights in the noise of that rate (warmup–stable–decay, Hu et al. 2024).

    Raises:
        BadInput: A bound is out of range, or `falls` are not two rising steps.

    Example:
        `run.apply("rate_band", most=0.1)`: a restart to 1.0 is held at 0.1.
    """

    of_gradient = False

    def __init__(
        self, least: float = 0.0, most: float | None = None, shape: bool = False, falls: Sequence[int] | None = None
    ) -> None:
        if not (math.isfinite(least) and least >= 0):
            raise BadInput(f"apply('rate_band', least=...) must be at least 0 and finite. Got {least}.")
        if most is not None and not (math.isfinite(most) and most > 0 and most >= least):
            raise BadInput(f"apply('rate_band', most=...) must be positive, finite and at least {least:g}. Got {most}.")
        if falls is not None and not (len(falls) == 2 and 0 <= falls[0] < falls[1]):
            raise BadInput(f"apply('rate_band', falls=...) must be two rising steps. Got {list(falls)}.")
        self.falls = None if falls is None else (int(falls[0]), int(falls[1]))
        self.least, self.most, self.shape = float(least), math.inf if most is None else float(most), bool(shape)
        self._highest, self._last = self.most, 0.0

    def __str__(self) -> str:
        return f"learning rate within [{self.least:g}, {'∞' if self.most == math.inf else format(self.most, 'g')}]"

    def before(self, step: StepView) -> None:
        """Put the factor into the step; the actuator applies the product of all of them."""
        rate = max((float(group["lr"]) for group in step.optimizer.param_groups if "lr" in group), default=0.0)
        if rate > 0:
            if self._last > max(LEAST, RETURN * self._highest / self.most) * rate:
                self._highest = self.most
            self._highest, self._last = max(self._highest, rate), rate
            above = rate * self.most / self._highest if self.shape and self._highest < math.inf else self.most
            step.rates = step.rates * RateFactors(reactive=min(max(rate, self._floor(step.step)), above) / rate)

    def _floor(self, step: int) -> float:
        if self.falls is None:
            return self.least
        first, last = self.falls
        return self.least * min(1.0, max(0.0, (last - step) / (last - first)))

    def state_dict(self) -> dict[str, Any]:
        """The highest rate so far, None where there is no upper bound, and the last one."""
        return {"highest": None if self._highest == math.inf else self._highest, "last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._highest = math.inf if state.get("highest") is None else float(state["highest"])
        self._last = float(state.get("last", 0.0))  # older checkpoints have none
