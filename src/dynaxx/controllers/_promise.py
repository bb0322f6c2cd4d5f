"""What controllers promise of the loss: to be unharmed, or to fall faster than it does."""

import math

from dynaxx.controllers._limits import limits
from dynaxx.controllers._reading import LOSS, Level, column_of, level
from dynaxx.core.navigation import Promise, Situation

SPEED = 0.5
"""Share of its present speed of descent that an unharmed loss keeps: curves flatten by themselves, but not by half
within one horizon."""
ERRORS = 2.0
"""Standard errors of the difference of two medians that count as noise: of true promises 2 % are lost to it."""
MEDIAN = 1.2533
"""Standard error of a median over that of a mean, for normal noise."""


def present(situation: Situation, names: tuple[str, ...] = LOSS) -> tuple[str, Level] | None:
    """The level and trend of the loss over the last two horizons.

    Args:
        situation: Where the run is.
        names: The columns that will do.

    Returns:
        Column and level; None where there are too few values.
    """
    column = column_of(situation.run, names)
    if column is None:
        return None
    found = level(situation.run, column, situation.step - 2 * limits(situation).horizon, situation.step)
    return None if found is None else (column, found)


def unharmed(situation: Situation, names: tuple[str, ...] = LOSS, steps: int | None = None) -> Promise | None:
    """The loss goes on falling at least half as fast as it does, within the noise.

    Args:
        situation: Where the run is.
        names: The columns that will do.
        steps: After which it is judged; None: the run's horizon.

    Returns:
        The promise; None where the log has no level yet.
    """
    found = present(situation, names)
    if found is None:
        return None
    column, now = found
    steps = limits(situation).horizon if steps is None else steps
    gain = SPEED * min(0.0, now.slope) * steps
    return Promise(column=column, below=now.now + gain + ERRORS * error(now, steps), steps=steps)


def trend(situation: Situation, share: float) -> Promise | None:
    """The loss falls at least `share` times as fast as it does now.

    Args:
        situation: Where the run is.
        share: 1: as fast as now.

    Returns:
        The promise; None where the log has no level yet.
    """
    found = present(situation)
    if found is None:
        return None
    column, now = found
    steps = limits(situation).horizon
    return Promise(column=column, below=now.now + share * min(0.0, now.slope) * steps, steps=steps)


def error(now: Level, steps: int) -> float:
    """Standard error of the difference between the level now and the median that a promise is judged by.

    Args:
        now: The level.
        steps: Of the promise; its last quarter is judged.

    Returns:
        The error, in the column's unit.
    """
    return MEDIAN * now.noise * math.sqrt(1 / now.values + 4 / max(4, steps))
