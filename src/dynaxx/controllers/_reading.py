"""What controllers read from the log: the loss, its level, trend and noise, and single figures of other columns."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynaxx.core.findings import Log
from dynaxx.core.navigation import Situation

Vector = NDArray[np.float64]
NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
LOSS, VALIDATION = ("loss", "train_loss"), ("val_loss", "validation_loss")
"""Names under which loops log them, the preferred one first."""


class Level(NamedTuple):
    """A stretch of a column as a line with noise.

    Args:
        now: Where the line ends, in the column's unit.
        slope: Its rise per step.
        noise: Robust standard deviation of one value about it.
        values: Finite values that it was drawn through.
    """

    now: float
    slope: float
    noise: float
    values: int


def column_of(run: Log, names: tuple[str, ...]) -> str | None:
    """The first of some columns that a log holds.

    Args:
        run: The log.
        names: In order of preference.

    Returns:
        Its name, or None.
    """
    return next((name for name in names if name in run.columns), None)


def rows(run: Log, column: str, first: int, last: int) -> tuple[Vector, Vector]:
    """The rows of a column with one number a step.

    Args:
        run: The log.
        column: A column of it.
        first: First step.
        last: Last step.

    Returns:
        Steps and values, float64 of shape (rows,).
    """
    series = run[column]
    at = slice(int(np.searchsorted(series.steps, first)), int(np.searchsorted(series.steps, last, side="right")))
    return np.asarray(series.steps[at], dtype=np.float64), np.asarray(series.values[at], dtype=np.float64)


def level(run: Log, column: str, first: int, last: int) -> Level | None:
    """The line through a stretch of a column: Theil's slope on at most 64 points, medians for level and noise.

    Args:
        run: The log.
        column: A column with one number a step.
        first: First step.
        last: Last step.

    Returns:
        The line; None with fewer than 5 finite values.
    """
    steps, values = rows(run, column, first, last)
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if len(values) < 5:
        return None
    thin = np.linspace(0, len(values) - 1, min(64, len(values))).astype(int)  # 2 016 pairs at most: 0.1 ms
    i, j = np.triu_indices(len(thin), 1)
    slope = float(np.median((values[thin][j] - values[thin][i]) / (steps[thin][j] - steps[thin][i])))
    now = float(np.median(values - slope * (steps - last)))
    noise = NORMAL * float(np.median(np.abs(values - now - slope * (steps - last))))
    return Level(now, slope, noise, len(values))


def latest(run: Log, column: str, last: int, rows_back: int = 5) -> float | None:
    """The median of a column's last finite values.

    Args:
        run: The log.
        column: A column with one number a step.
        last: The last step that counts.
        rows_back: How many rows.

    Returns:
        The figure; None where the log holds none.
    """
    if column not in run.columns:
        return None
    _, values = rows(run, column, 0, last)
    values = values[-rows_back:]
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None


def rate_factor(situation: Situation) -> float:
    """The total factor that actions in force put on the learning rate.

    Args:
        situation: Where the run is.

    Returns:
        1 where none does.
    """
    factor = 1.0
    if "learning_rate" in situation.in_force:
        factor *= float(situation.in_force["learning_rate"].arguments["factor"])
    if "accumulate" in situation.in_force:
        factor *= float(situation.in_force["accumulate"].arguments.get("rate", 1.0))
    return factor


def own_factor(situation: Situation) -> float:
    """The factor of the action `learning_rate` alone.

    Args:
        situation: Where the run is.

    Returns:
        1 where it is not in force.
    """
    action = situation.in_force.get("learning_rate")
    return 1.0 if action is None else float(action.arguments["factor"])


def round_figure(value: float) -> float:
    """Three significant digits: a factor that people can read, and that no rounding of the last bit changes.

    Args:
        value: A number.

    Returns:
        The rounded number.

    Example:
        >>> round_figure(0.123456)
        0.123
    """
    return float(f"{value:.3g}") if math.isfinite(value) else value
