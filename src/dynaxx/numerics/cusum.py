"""Cumulative sums: how far a stream has risen since its lowest point, and when the rise began."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dynaxx.errors import BadInput


class Rise(NamedTuple):
    """A one-sided cumulative sum.

    Args:
        height: S_t at each point.
        onset: Index of the last point before t at which the sum stood at zero: where the rise that t belongs to began.
    """

    height: np.ndarray
    onset: np.ndarray


def cusum(residuals: Float[np.ndarray, " n"], allowance: float) -> Rise:
    """Page's sum S_t = max(0, S_{t−1} + r_t − k), without a loop: S_t = C_t − min_{s≤t} C_s with C the cumulative sum.

    With unit normal residuals and k = δ/2 it is the quickest test for a shift of δ at a given rate of false alarms
    (Page 1954, Lorden 1971); alarm where S_t > h. At k = 0.5, h = 5 the average run length without shift is 930
    (Siegmund 1985).

    Args:
        residuals: Standardised: 0 on average where nothing happens.
        allowance: k: the drift per point that is let pass.

    Returns:
        Height and onset at each point.

    Raises:
        BadInput: A residual is not finite.

    Example:
        >>> cusum(np.array([-1.0, 1.0, 1.0, -9.0, 1.0]), 0.5).height
        array([0. , 0.5, 1. , 0. , 0.5])
    """
    if not np.isfinite(residuals).all():
        raise BadInput("cusum(residuals) must be finite. Leave out what is not.")
    path = np.concatenate([[0.0], np.cumsum(residuals - allowance)])
    lowest = np.minimum.accumulate(path)
    at = np.maximum.accumulate(np.where(path <= lowest, np.arange(len(path)), 0))
    return Rise(path[1:] - lowest[1:], at[1:])
