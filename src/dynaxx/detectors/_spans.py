"""Stretches of steps: where a condition held on end, over rows and entries of a column."""

from collections.abc import Sequence

import numpy as np


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` rows up to each row, over the finite ones; of fewer at the beginning.

    Args:
        values: Shape (rows,) or (rows, entries).
        window: Rows.

    Returns:
        The same shape; NaN where no value of the window is finite.

    Example:
        >>> moving_mean(np.array([1.0, 3.0, np.nan, 5.0]), 2)
        array([1., 2., 3., 5.])
    """
    finite = np.isfinite(values)
    sums = np.cumsum(np.where(finite, values, 0.0), axis=0)
    counts = np.cumsum(finite, axis=0, dtype=np.float64)
    sums[window:], counts[window:] = sums[window:] - sums[:-window], counts[window:] - counts[:-window]
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def stretches(steps: np.ndarray, flags: np.ndarray, least: int, end: int) -> tuple[tuple[int, int], ...]:
    """Where a condition held for at least so many rows on end.

    Args:
        steps: Shape (rows,).
        flags: bool of shape (rows,).
        least: Rows that a stretch must have.
        end: The last step of the log: a stretch that holds at the last row is taken to hold up to it.

    Returns:
        First and last step of each stretch, in order.

    Example:
        >>> stretches(np.array([1, 2, 3, 8]), np.array([True, True, False, True]), 1, 10)
        ((1, 2), (8, 10))
    """
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    first, last = edges[::2], edges[1::2] - 1
    long = last - first + 1 >= least
    found = [(int(steps[a]), int(steps[b])) for a, b in zip(first[long], last[long], strict=True)]
    if found and len(flags) and flags[-1] and found[-1][1] == int(steps[-1]):
        found[-1] = (found[-1][0], max(end, int(steps[-1])))
    return tuple(found)


def entries(steps: np.ndarray, flags: np.ndarray, least: int, end: int) -> dict[int, tuple[tuple[int, int], ...]]:
    """The entries of a column for which a condition held for at least so many rows on end.

    Args:
        steps: Shape (rows,).
        flags: bool of shape (rows, entries).
        least: Rows that a stretch must have.
        end: The last step of the log.

    Returns:
        Place of the entry → its stretches.
    """
    likely = np.flatnonzero(flags.sum(axis=0) >= least)
    found = {int(i): stretches(steps, flags[:, i], least, end) for i in likely}
    return {i: spans for i, spans in found.items() if spans}


def within(steps: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Which steps lie in any of the stretches.

    Args:
        steps: Shape (rows,).
        spans: First and last step of each.

    Returns:
        bool of shape (rows,).
    """
    inside = np.zeros(len(steps), dtype=bool)
    for first, last in spans:
        inside |= (steps >= first) & (steps <= last)
    return inside
