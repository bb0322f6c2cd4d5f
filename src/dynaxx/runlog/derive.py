"""Columns computed on reading: one number per step out of a vector, and smoothed curves. They are never stored.

NaN is passed on: a norm over layers of which one is NaN is NaN. Only entries that are NaN at every step, as where a
statistic does not exist for a layer, are left out; of a norm or a sum they are not, as it would be another quantity.
"""

import math
from collections.abc import Callable

import numpy as np

from dynaxx.core.records import Column


def total(values: np.ndarray, column: Column) -> np.ndarray:
    """The entries collapsed to one value for the whole model, as the column declares.

    l2: √Σxᵢ² · sum: Σxᵢ · mean: Σwᵢxᵢ / Σwᵢ with the axis' weights (1 where it has none) · max · min.

    Args:
        values: Shape (steps, entries).
        column: Declares `reduce`.

    Returns:
        float64 of shape (steps,).

    Example:
        >>> total(np.array([[3.0, 4.0]]), Column(name="grad_norm", reduce="l2"))
        array([5.])
    """
    if column.reduce == "l2":
        return np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
    if column.reduce == "sum":
        return values.sum(axis=1, dtype=np.float64)
    if column.reduce == "mean":
        weights = np.array(column.axis.weights if column.axis is not None else (), dtype=np.float64)
        weights = weights if len(weights) else np.ones(values.shape[1])
        there = measured(values)
        weights = weights[there] / weights[there].sum()
        return np.einsum("ij,j->i", values[:, there], weights, dtype=np.float64)
    assert column.reduce in ("max", "min"), "the entries do not collapse"
    return STATISTICS[column.reduce](values[:, measured(values)])


def early_to_late(values: np.ndarray) -> np.ndarray:
    """The mean over the first third of the entries over that of the last third: far from 1, depth is unbalanced.

    Args:
        values: Shape (steps, entries), in the order of the axis.

    Returns:
        float64 of shape (steps,).

    Example:
        >>> early_to_late(np.array([[1.0, 5.0, 4.0]]))
        array([0.25])
    """
    third = max(1, values.shape[1] // 3)
    return values[:, :third].mean(axis=1, dtype=np.float64) / values[:, -third:].mean(axis=1, dtype=np.float64)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Debiased exponential moving average over the logged points, with a half-life of 1 % of them, at least 5.

    yᵢ = Σⱼ≤ᵢ βⁱ⁻ʲ xⱼ / Σⱼ≤ᵢ βⁱ⁻ʲ over the finite xⱼ, β = 2^(−1/h), h = max(5, points / 100).

    Args:
        values: Shape (points,).

    Returns:
        float64 of shape (points,); NaN before the first finite point.

    Example:
        >>> smoothed(np.array([1.0, 1.0, np.nan, 1.0]))
        array([1., 1., 1., 1.])
    """
    from scipy.signal import lfilter  # takes a third of a second to import

    beta = math.exp2(-1.0 / max(5.0, len(values) / 100))
    finite = np.isfinite(values)
    top = lfilter([1.0], [1.0, -beta], np.where(finite, values, 0.0).astype(np.float64))
    bottom = lfilter([1.0], [1.0, -beta], finite.astype(np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(top) / np.asarray(bottom)


def measured(values: np.ndarray) -> np.ndarray | slice:
    """The entries that are not NaN at every step.

    Args:
        values: Shape (steps, entries).

    Returns:
        Their places; all where nothing is left out or nothing would be left.
    """
    places = np.flatnonzero(~np.isnan(values).all(axis=0))
    return places if 0 < len(places) < values.shape[1] else slice(None)


STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "max": lambda values: values.max(axis=1),
    "min": lambda values: values.min(axis=1),
    "median": lambda values: np.median(values, axis=1),
    "q10": lambda values: np.quantile(values, 0.1, axis=1),
    "q90": lambda values: np.quantile(values, 0.9, axis=1),
    "early_to_late": early_to_late,
}
"""Suffix → what it makes of (steps, entries)."""


def derivable(column: Column) -> tuple[str, ...]:
    """The suffixes that make one number per step out of a column.

    Args:
        column: The column.

    Returns:
        None for one number a step; `total` only where the column declares how its entries collapse.
    """
    if column.axis is None:
        return ()
    return tuple(STATISTICS) if column.reduce == "none" else ("total", *STATISTICS)


def statistic(suffix: str, values: np.ndarray, column: Column) -> np.ndarray:
    """One number per step out of a vector.

    Args:
        suffix: One of `derivable(column)`.
        values: Shape (steps, entries).
        column: The column that they belong to.

    Returns:
        float64 of shape (steps,).
    """
    with np.errstate(all="ignore"):  # inf − inf and x / 0 are answers here: NaN and inf
        made = total(values, column) if suffix == "total" else STATISTICS[suffix](values[:, measured(values)])
    return made.astype(np.float64, copy=False)
