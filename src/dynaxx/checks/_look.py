"""What the checks share: the loss of single batches at the live weights, and robust comparison of a few numbers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynaxx.core.navigation import LivePoint
from dynaxx.core.objective import Mode, Objective
from dynaxx.errors import NotApplicable

FLOOR = 0.1
"""Least scale of a robust score in logarithms: batches of a healthy run differ by some percent, and a spread that is
small by chance makes no batch special."""


def objective(point: LivePoint, batches: Sequence[Any], mode: Mode) -> Objective:
    """The mean loss of some batches at the live weights; it writes nothing.

    Args:
        point: The live run.
        batches: Some of its batches.
        mode: "training", "evaluation", or "as is".

    Returns:
        The objective.
    """
    return Objective(point.model, point.loss, batches, weight=point.weight, mode=mode)


def losses(point: LivePoint, batches: Sequence[Any], mode: Mode) -> np.ndarray:
    """The loss of each batch by itself.

    Args:
        point: The live run.
        batches: Some batches.
        mode: As for `objective`.

    Returns:
        float64 of shape (batches,).
    """
    return np.array([objective(point, [batch], mode).value() for batch in batches], dtype=np.float64)


def recent(point: LivePoint, least: int) -> Sequence[Any]:
    """The batches that are kept, if there are enough.

    Args:
        point: The live run.
        least: How many it takes.

    Returns:
        They, oldest first.

    Raises:
        NotApplicable: There are fewer.
    """
    if len(point.batches) < least:
        raise NotApplicable(
            f"{least} recent batches are needed, {len(point.batches)} are kept: use run.batches(loader)"
        )
    return point.batches


def score(value: float, others: np.ndarray) -> float:
    """How far a positive number stands from others, in robust standard deviations of their logarithms.

    (ln x − median) / max(1.4826 MAD, `FLOOR`).

    Args:
        value: The number.
        others: Positive numbers.

    Returns:
        The score; infinite where the value is not finite, NaN where others are not positive.

    Example:
        >>> round(score(8.0, np.array([1.0, 1.0, 1.0])), 2)
        20.79
    """
    if not math.isfinite(value):
        return math.inf
    if value <= 0 or not (others > 0).all() or not len(others):
        return math.nan
    logs = np.log(others)
    middle = float(np.median(logs))
    spread = 1.4826 * float(np.median(np.abs(logs - middle)))
    return (math.log(value) - middle) / max(spread, FLOOR)
