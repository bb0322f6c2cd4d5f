"""Long series made short for drawing, without hiding a spike, a gap or a value that is not finite."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dynaxx.core.panels import Scale

LINE_POINTS = 4_000
"""Most points of a drawn line: two (minimum and maximum) for each pixel column of a wide screen."""
HEAT_COLUMNS = 1_200
"""Most columns of a heat-map: one for each pixel of a wide panel."""
HEAT_CELLS = 150_000
"""Most cells of a heat-map: beyond it (125 layers) columns are pooled further, down to `HEAT_COLUMNS_LEAST`, so that
the report of a model of 500 layers stays under 5 MB."""
HEAT_COLUMNS_LEAST = 240
CODES = 4095
"""Largest code of a heat-map value: 12 bits, 0.3 % a step over six decades."""
MISSING, BAD = 0, 1
"""Codes of a cell without a value, and of one whose value is not finite."""
INTERVALS = 200
"""About how many intervals of values that are not finite are kept apart."""


def envelope(x: np.ndarray, y: np.ndarray, points: int = LINE_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """The series by minimum and maximum of equal buckets, each at its own place; short ones as they are.

    Args:
        x: Positions, shape (n,), increasing.
        y: Values, shape (n,); entries that are not finite lose against those that are.
        points: Most points to keep, at least 4.

    Returns:
        x and y of at most `points` points: the first, the last, and every bucket's extremes. A bucket without a finite
        value stays as one NaN, so that the line breaks there.

    Example:
        >>> y = np.zeros(100_000)
        >>> y[54_321] = 7.0
        >>> x, pooled = envelope(np.arange(100_000.0), y, points=100)
        >>> len(x) <= 100, float(x[np.argmax(pooled)]), float(pooled.max())
        (True, 54321.0, 7.0)
    """
    finite = np.isfinite(y)
    y = np.where(finite, y, np.nan)
    if len(y) <= points:
        return x, y
    buckets = (points - 2) // 2
    starts = np.linspace(0, len(y), buckets + 1).astype(np.int64)
    width = int(np.diff(starts).max())
    index = np.minimum(starts[:-1, None] + np.arange(width), starts[1:, None] - 1)
    low = np.where(finite, y, np.inf)[index].argmin(axis=1)
    high = np.where(finite, y, -np.inf)[index].argmax(axis=1)
    rows = np.arange(buckets)
    kept = np.unique(np.concatenate([[0, len(y) - 1], index[rows, low], index[rows, high]]))
    return x[kept], y[kept]


def not_finite(x: np.ndarray, y: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Where a series has values that are not finite, as intervals of x; near ones are merged.

    Args:
        x: Positions, shape (n,), increasing.
        y: Values, shape (n,).

    Returns:
        (first, last) of each interval; about `INTERVALS` at most.

    Example:
        >>> not_finite(np.arange(5.0), np.array([0.0, np.nan, np.inf, 0.0, np.nan]))
        ((1.0, 2.0), (4.0, 4.0))
    """
    bad = np.flatnonzero(~np.isfinite(y))
    if bad.size == 0:
        return ()
    # Neighbours in the series belong together however far apart their steps are: nothing finite lies between them.
    new = np.diff(bad) > 1
    if np.count_nonzero(new) >= INTERVALS:
        new &= np.diff(x[bad]) > (x[-1] - x[0]) / INTERVALS
    firsts = np.concatenate([[0], np.flatnonzero(new) + 1])
    lasts = np.concatenate([np.flatnonzero(new), [bad.size - 1]])
    return tuple((float(x[bad[a]]), float(x[bad[b]])) for a, b in zip(firsts, lasts, strict=True))


def union(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The intervals with those that overlap joined.

    Args:
        intervals: (first, last) each, in any order.

    Returns:
        Disjoint intervals in order.

    Example:
        >>> union([(4, 4), (1, 3), (2, 3.5)])
        [(1, 3.5), (4, 4)]
    """
    joined: list[tuple[float, float]] = []
    for first, last in sorted(intervals):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """A heat-map ready to be drawn: cell i reaches from `x[i]` to `x[i + 1]`.

    Args:
        x: First step of each cell, shape (columns + 1,); the last entry is the end of the last cell.
        values: Shape (columns, rows); NaN where there is no value, inf where a value was not finite.
        pooled: How many measured steps a cell stands for at most; 1: nothing was pooled.
        by: How they were pooled.
        span: Smallest and largest finite value; (0, 0) where there is none.
        colours: The values that the ends of the colour map stand for: percentiles 0.5 and 99.8, so that one wild value
            does not flatten the picture.
    """

    x: np.ndarray
    values: np.ndarray
    pooled: int
    by: Literal["max", "mean"]
    span: tuple[float, float]
    colours: tuple[float, float]


def cells(x: np.ndarray, values: np.ndarray, scale: Scale) -> Cells:
    """Pool the columns of a heat-map to what a screen can show.

    What spans decades ("log": norms, ratios) is pooled by maximum, so that spikes stay visible; the rest ("linear":
    fractions, means) by mean. A value that is not finite marks its whole cell: an infinite one, and a NaN of a step
    at which no row has a number any more (the run has diverged). Any other NaN is missing: 0/0 in a ratio, a layer not
    used, a window that is not full yet.

    Args:
        x: Steps, shape (columns,), increasing.
        values: Shape (columns, rows).
        scale: "log" takes zeros and negatives as missing.

    Returns:
        The cells.
    """
    columns, rows = values.shape
    finite = np.isfinite(values)
    numbers = finite.any(axis=1)
    bad = np.isinf(values) | (~numbers & np.logical_or.accumulate(numbers))[:, None] & finite.any(axis=0)
    shown = finite & (values > 0) if scale == "log" else finite
    most = min(HEAT_COLUMNS, max(HEAT_COLUMNS_LEAST, HEAT_CELLS // max(rows, 1)))
    starts = np.linspace(0, columns, min(columns, most) + 1).astype(np.int64)
    by: Literal["max", "mean"] = "max" if scale == "log" else "mean"
    if by == "max":
        pooled = np.maximum.reduceat(np.where(shown, values, -np.inf), starts[:-1], axis=0)
        pooled[np.isneginf(pooled)] = np.nan
    else:
        count = np.add.reduceat(shown, starts[:-1], axis=0, dtype=np.int64)
        total = np.add.reduceat(np.where(shown, values, 0.0), starts[:-1], axis=0, dtype=np.float64)
        pooled = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    good = pooled[np.isfinite(pooled)]
    pooled[np.logical_or.reduceat(bad, starts[:-1], axis=0)] = np.inf
    ends = np.append(x, x[-1] + (np.median(np.diff(x)) if columns > 1 else 1.0))[starts]
    span, colours = (0.0, 0.0), (0.0, 0.0)
    if good.size:
        span = (float(good.min()), float(good.max()))
        low, high = np.percentile(good, [0.5, 99.8])
        colours = (float(low), float(high)) if high > low else span
    return Cells(
        x=ends.astype(np.float64), values=pooled, pooled=int(np.diff(starts).max()), by=by, span=span, colours=colours
    )


def encode(values: np.ndarray, span: tuple[float, float], scale: Scale) -> np.ndarray:
    """A heat-map's values as 12-bit codes: `MISSING`, `BAD`, or 2 … `CODES` evenly from the span's start to its end.

    Args:
        values: Shape (columns, rows); NaN for missing, inf for not finite.
        span: Values of codes 2 and `CODES`.
        scale: "log": even steps of the logarithm.

    Returns:
        uint16 of shape (rows, columns): a layer's history lies together, which compresses better.

    Example:
        >>> encode(np.array([[1.0, np.nan], [100.0, np.inf]]), (1.0, 100.0), "log").tolist()
        [[2, 4095], [0, 1]]
    """
    good = np.isfinite(values)
    warp = np.log10 if scale == "log" else np.asarray
    low, high = (float(warp(np.float64(v))) for v in span)
    unit = (warp(np.where(good, values, span[0]).astype(np.float64)) - low) / ((high - low) or 1.0)
    codes = np.rint(2 + unit * (CODES - 2))
    codes[~good] = np.where(np.isnan(values[~good]), MISSING, BAD)
    return np.ascontiguousarray(codes.T.astype(np.uint16))
