"""What controllers promise of the loss: to be unharmed, or to fall faster than it would by itself."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dynaxx.controllers._limits import limits
from dynaxx.controllers._reading import LOSS, NORMAL, Vector, column_of, rows
from dynaxx.core.navigation import Promise, Situation

SPEED = 0.5
"""Speed of descent that an unharmed loss keeps: what is to be expected errs by about as much."""
ERRORS = 2.0
"""Standard errors of the difference of two medians that count as noise: of true promises 2 % are lost to it."""
MEDIAN = 1.2533
"""Standard error of a median over that of a mean, for normal noise."""
LEAST = 3
"""Values that a median is taken of, at least."""


UNKNOWN_RATIO = 0.5
"""Ratio of successive gains that is assumed where it cannot be measured: too early, or the rate has changed
meanwhile."""
_RATE_ACTS = frozenset({"learning_rate", "accumulate", "rollback", "trial"})


class Descent(NamedTuple):
    """Where the loss is, and how it falls; in logarithms where it is positive, as its noise goes with its size.

    Args:
        column: The loss.
        log: Whether the figures are natural logarithms.
        now: Its level: the median of the last quarter of a horizon.
        last: What the last horizon has gained; not negative, 0 where it is not known.
        ratio: What the next horizon gains of that, in [0, 1].
        error: Standard error of the difference between two levels.
        steps: The horizon.
    """

    column: str
    log: bool
    now: float
    last: float
    ratio: float
    error: float
    steps: int

    def gain(self, speed: float) -> float:
        """What the next horizon gains at a multiple of the speed: d r (1 − rˢ) / (1 − r).

        Args:
            speed: s; 1: nothing changes.

        Returns:
            The gain.
        """
        r = self.ratio
        return self.last * (speed if r == 1 else r * (1 - r**speed) / (1 - r))

    def promise(self, below: float) -> Promise:
        """That the loss will be below a level.

        Args:
            below: The level, a logarithm where the figures are.

        Returns:
            The promise, judged after the horizon.
        """
        return Promise(column=self.column, below=math.exp(below) if self.log else below, steps=self.steps)


def descent(situation: Situation) -> Descent | None:
    """The level of the loss, what the last horizon gained and the ratio to what the one before gained.

    Curves flatten, and a straight line would promise too much.

    Args:
        situation: Where the run is.

    Returns:
        The descent; None where the loss is not logged, or not finite now.
    """
    column = column_of(situation.run, LOSS)
    if column is None:
        return None
    steps = limits(situation).horizon
    at, values = rows(situation.run, column, situation.step - 3 * steps, situation.step)
    finite = np.isfinite(values)
    at, values = at[finite], values[finite]
    log = bool(len(values) and values.min() > 0)
    values = np.log(values) if log else values
    before, middle, now = (_median(at, values, situation.step - back * steps, steps) for back in (2, 1, 0))
    if now is None:
        return None
    gained, ratio = 0.0 if middle is None else middle - now, 1.0
    if before is not None and middle is not None and before - middle > gained > 0:
        ratio = gained / (before - middle)
    if before is None or _changed(situation, situation.step - 2 * steps):
        ratio = min(ratio, UNKNOWN_RATIO)
    # Differences of neighbours do not feel the trend; their deviation is √2 of one value's.
    noise = NORMAL * float(np.median(np.abs(np.diff(values)))) / math.sqrt(2)
    error = MEDIAN * noise * math.sqrt(2 * 4 / steps)
    return Descent(column, log, now, max(0.0, gained), ratio, error, steps)


def unharmed(situation: Situation) -> Promise | None:
    """The loss goes on falling at least half as fast, within the noise.

    Args:
        situation: Where the run is.

    Returns:
        The promise; None where no level is known.
    """
    found = descent(situation)
    if found is None:
        return None
    return found.promise(found.now - found.gain(SPEED) + ERRORS * found.error)


def steady(situation: Situation, horizons: int = 1) -> Promise | None:
    """The loss does not rise over its present level, within the noise: what an act promises that may slow the descent.

    Args:
        situation: Where the run is.
        horizons: After how many it is judged.

    Returns:
        The promise; None where no level is known.
    """
    found = descent(situation)
    if found is None:
        return None
    return replace(found.promise(found.now + ERRORS * found.error), steps=horizons * found.steps)


def faster(situation: Situation, speed: float) -> Promise | None:
    """The loss falls at least `speed` times as fast.

    Args:
        situation: Where the run is.
        speed: More than 1.

    Returns:
        The promise; None where no level is known, or where the difference would be lost in the noise.
    """
    found = descent(situation)
    if found is None or found.gain(speed) - found.gain(1.0) <= ERRORS * found.error:
        return None
    return found.promise(found.now - found.gain(speed))


def _changed(situation: Situation, since: int) -> bool:
    """Whether an act has changed the rate, or was taken back, since a step."""
    done = [(d.proposal.action.name, d.step) for d in situation.decisions]
    done += [(o.proposal.action.name, o.judged) for o in situation.outcomes if o.undone]
    return any(name in _RATE_ACTS and step > since for name, step in done)


def _median(at: Vector, values: Vector, last: int, steps: int) -> float | None:
    """The median of the quarter of a horizon that ends at a step."""
    window = values[(at > last - max(LEAST, steps // 4)) & (at <= last)]
    return float(np.median(window)) if len(window) >= LEAST else None
