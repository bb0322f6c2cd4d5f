"""Whether the validation rests, and the promise to leave that rest."""

import math

from dynaxx.controllers._limits import limits
from dynaxx.controllers._promise import ERRORS, MEDIAN
from dynaxx.controllers._reading import LOSS, VALIDATION, Level, column_of, level
from dynaxx.core.navigation import Promise, Situation

ROWS = 10
"""Validation rows that a rest is judged by: with one evaluation every 2 % of a run, its last fifth."""


def resting(situation: Situation) -> bool:
    """Whether the validation loss (the training loss, where there is none) no longer falls by more than its noise.

    Args:
        situation: Where the run is.

    Returns:
        True where it rests; False where it falls, or there are too few rows to tell.
    """
    found = _level(situation)
    if found is None:
        return False
    _, now, stretch = found
    return -now.slope * stretch <= ERRORS * _error(now)


def hopeless(situation: Situation, gain: float) -> bool:
    """Whether the trend, one standard error better than it is, would gain less than a share of the loss by the end.

    Args:
        situation: Where the run is; without planned steps, a tenth more than so far counts as the end.
        gain: The share.

    Returns:
        True where it would; False where more is to be hoped for, or there are too few rows to tell.
    """
    found = _level(situation)
    if found is None or found[1].now == 0:
        return False
    _, now, stretch = found
    left = situation.step // 10 if situation.steps is None else situation.steps - situation.step
    error = now.noise * math.sqrt(12 / now.values) / stretch  # of a slope through evenly spaced values
    return (error - now.slope) * left < gain * abs(now.now)


def better(situation: Situation, steps: int) -> Promise | None:
    """The validation loss (the training loss, where there is none) falls below its present level by more than noise.

    Args:
        situation: Where the run is.
        steps: After which it is judged.

    Returns:
        The promise; None where the log has no level.
    """
    found = _level(situation)
    if found is None:
        return None
    column, now, _ = found
    return Promise(column=column, below=now.now - ERRORS * _error(now), steps=steps)


def _level(situation: Situation) -> tuple[str, Level, int] | None:
    """Column, level, and the steps that it was taken over."""
    column = column_of(situation.run, VALIDATION)
    if column is not None:
        steps = situation.run[column].steps
        steps = steps[steps <= situation.step]
        if len(steps) >= ROWS:
            first = int(steps[-ROWS])
            now = level(situation.run, column, first, situation.step)
            return None if now is None else (column, now, situation.step - first)
        return None
    column = column_of(situation.run, LOSS)
    stretch = max(2 * limits(situation).horizon, situation.step // 4)
    now = None if column is None else level(situation.run, column, situation.step - stretch, situation.step)
    return None if column is None or now is None else (column, now, stretch)


def _error(now: Level) -> float:
    """Standard error of the difference of two levels of as many values as this one."""
    return MEDIAN * now.noise * math.sqrt(2 / now.values)
