"""Whether the validation rests, what it may still gain, and the promise to leave that rest."""

import math

import numpy as np

from dynaxx.controllers._limits import limits
from dynaxx.controllers._promise import ERRORS, MEDIAN
from dynaxx.controllers._reading import LOSS, NORMAL, VALIDATION, Level, Vector, column_of, level, rows
from dynaxx.core.navigation import Promise, Situation
from dynaxx.numerics.remaining_gain import remaining_gain

ROWS = 10
"""Validation rows that a rest is judged by: with one evaluation every 2 % of a run, its last fifth."""
HALF = 8
"""Validation rows that the second half of the steps so far must hold."""
QUARTER = 5
"""Rows that its last quarter must hold to be asked by itself, the fewest that have a bound."""
MEDIANS = 40
"""Medians that half of a training loss is thinned to, where there is no validation: a bound from 780 slopes takes 1 ms.
"""
CHOSEN = 3.0
"""Standard errors by which the lowest of many medians may lie too low by chance."""


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
    """The share that the validation (the training, where there is none) may still gain on its best by the planned end.

    The larger bound of `numerics.remaining_gain` over the last half and over the last quarter of the steps so far: a
    fall that has set in again shows in the shorter one. What the loss stands above its best must be made good first.

    Args:
        situation: Where the run is; without planned steps, a tenth more than so far counts as the end.

    Returns:
        The share, at most; None where there are too few rows to tell.
    """
    column = column_of(situation.run, VALIDATION) or column_of(situation.run, LOSS)
    if column is None:
        return None
    at, values = rows(situation.run, column, 1, situation.step)
    finite = np.isfinite(values)
    at, values = at[finite], values[finite]
    if column in LOSS:
        at, values = _thinned(at, values, 2 * MEDIANS)
    half, quarter = np.searchsorted(at, [situation.step // 2, situation.step - situation.step // 4])
    now = float(np.median(values[-HALF // 2 :])) if len(values) else 0.0
    if len(values) - half < HALF or now == 0:
        return None
    end = 1.1 * situation.step if situation.steps is None else float(situation.steps)
    most = remaining_gain(at[half:], values[half:], end).most
    if len(values) - quarter >= QUARTER:
        most = max(most, remaining_gain(at[quarter:], values[quarter:], end).most)
    return (most - _above_best(values, half)) / abs(now)


def _above_best(values: Vector, half: int) -> float:
    """How far the last median of `QUARTER` rows lies above the lowest one, beyond what noise makes of that choice."""
    medians = np.median(np.lib.stride_tricks.sliding_window_view(values, QUARTER), axis=1)
    noise = NORMAL * float(np.median(np.abs(np.diff(values[half:])))) / math.sqrt(2)  # of the second half, as it is now
    chance = CHOSEN * MEDIAN * noise / math.sqrt(QUARTER)
    return max(0.0, float(medians[-1] - medians.min()) - chance)


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


def _thinned(at: Vector, values: Vector, count: int) -> tuple[Vector, Vector]:
    """Medians of neighbouring rows at their mean steps, about `count` of them, the newest complete."""
    size = max(1, len(at) // count)
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
