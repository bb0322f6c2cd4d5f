"""Level and spread that outliers cannot move: medians and MADs, also over a window that trails each point."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from dynaxx.errors import BadInput

CONSISTENT = 1.4826022185056018
"""1/Φ⁻¹(3/4): the MAD times this is the standard deviation of a normal sample (Hampel 1974)."""


class Baseline(NamedTuple):
    """What each point of a stream is compared with.

    Args:
        center: Median of the kept points in the window before it; NaN where there are too few.
        scale: Their MAD times `CONSISTENT`.
    """

    center: np.ndarray
    scale: np.ndarray


def center_and_scale(values: Float[np.ndarray, "*shape n"]) -> tuple[np.ndarray, np.ndarray]:
    """Median and MAD · 1.4826 along the last axis.

    Args:
        values: Finite numbers.

    Returns:
        Both without the last axis. They withstand just under half of the values going to infinity.

    Example:
        >>> center, scale = center_and_scale(np.array([1.0, 2.0, 3.0, 4.0, 1e9]))
        >>> float(center), round(float(scale), 4)
        (3.0, 1.4826)
    """
    center = np.median(values, axis=-1)
    return np.asarray(center), np.asarray(CONSISTENT * np.median(np.abs(values - center[..., None]), axis=-1))


def trailing_baseline(
    values: Float[np.ndarray, " n"],
    keep: Bool[np.ndarray, " n"],
    *,
    window: int,
    every: int,
    least: int,
) -> Baseline:
    """Median and MAD over the kept points of the last `window` points, renewed every `every` points.

    Point i is compared with points before the last multiple of `every` that is ≤ i, never with itself or later ones.
    Costs a sort of (n/every) × window numbers.

    Args:
        values: The stream.
        keep: Which points may enter: those flagged as outliers before must not hide the next one.
        window: Points looked back.
        every: Points that share a baseline.
        least: Fewest kept points in the window; with fewer there is no baseline.

    Returns:
        One center and scale per point, NaN where there are too few kept points.

    Raises:
        BadInput: `least` exceeds `window`, or a number is below 1.

    Example:
        >>> stream = np.array([1.0, 2.0, 3.0, 50.0])
        >>> trailing_baseline(stream, np.ones(4, dtype=bool), window=3, every=1, least=3).center
        array([nan, nan, nan,  2.])
    """
    if not 1 <= least <= window or every < 1:
        raise BadInput(
            f"trailing_baseline(window, every, least) needs 1 <= least <= window and every >= 1. "
            f"Got {window}, {every}, {least}."
        )
    starts = np.arange(0, len(values), every)
    padded = np.concatenate([np.full(window, np.inf), np.where(keep, values, np.inf)])
    rows = np.sort(np.lib.stride_tricks.sliding_window_view(padded, window)[starts], axis=1)
    count = np.isfinite(rows).sum(axis=1)
    center = _median(rows, count)
    with np.errstate(invalid="ignore"):
        rows = np.sort(np.where(np.isfinite(rows), np.abs(rows - center[:, None]), np.inf), axis=1)
    scale = CONSISTENT * _median(rows, count)
    center[count < least] = np.nan
    scale[count < least] = np.nan
    at = np.arange(len(values)) // every
    return Baseline(center[at], scale[at])


def _median(rows: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Of the first `count` entries of each sorted row."""
    last = np.maximum(count - 1, 0)
    place = np.arange(len(rows))
    with np.errstate(invalid="ignore"):
        return (rows[place, last // 2] + rows[place, (last + 1) // 2]) / 2
