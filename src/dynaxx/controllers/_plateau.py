"""Whether the validation rests, what it may still gain, and the promise to leave that rest."""

import math

import numpy as np

from dynaxx.controllers._limits import limits
from dynaxx.controllers._promise import ERRORS, MEDIAN
from dynaxx.controllers._reading import LOSS, VALIDATION, Level, Vector, column_of, level, rows
from dynaxx.core.navigation import Promise, Situation
from dynaxx.numerics.remaining_gain import remaining_gain

ROWS = 10
"""Validation rows that a rest is judged by: with one evaluation every 2 % of a run, its last fifth."""
HALF = 8
"""Validation rows that the second half of the steps so far must hold."""
MEDIANS = 40
"""Medians that a training loss is thinned to, where there is no validation: a bound from 780 slopes takes 1 ms."""


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


def may_gain(situation: Situation) -> float | None:
    """The share of the loss that the validation (the training, where there is none) may still gain by the planned end.

    The bound of `numerics.remaining_gain` over the second half of the steps so far.

    Args:
        situation: Where the run is; without planned steps, a tenth more than so far counts as the end.

    Returns:
        The share, at most; None where there are too few rows to tell.
    """
    column = column_of(situation.run, VALIDATION)
    if column is not None:
        at, values = rows(situation.run, column, situation.step // 2, situation.step)
    else:
        column = column_of(situation.run, LOSS)
        if column is None:
            return None
        at, values = _thinned(*rows(situation.run, column, situation.step // 2, situation.step))
    finite = np.isfinite(values) & (at > 0)
    at, values = at[finite], values[finite]
    now = float(np.median(values[-HALF // 2 :])) if len(values) else 0.0
    if len(values) < HALF or now == 0:
        return None
    end = 1.1 * situation.step if situation.steps is None else float(situation.steps)
    return remaining_gain(at, values, end).most / abs(now)


def promising(situation: Situation) -> bool:
    """Whether grokking is under way or a catapult has just begun: what looks like an end is none.

    Args:
        situation: Where the run is.

    Returns:
        True while it is; the edge of stability promises nothing.
    """
    return any(f.name in ("grokking", "catapult") and f.name in situation.fresh for f in situation.findings)


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


def _thinned(at: Vector, values: Vector) -> tuple[Vector, Vector]:
    """Medians of neighbouring rows at their mean steps, the newest complete."""
    size = max(1, len(at) // MEDIANS)
    rest = len(at) % size
    return at[rest:].reshape(-1, size).mean(axis=1), np.median(values[rest:].reshape(-1, size), axis=1)


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
