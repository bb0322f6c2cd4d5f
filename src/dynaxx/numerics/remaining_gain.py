"""How far a curve that flattens may still fall: its trend in the logarithm of time, with a rank-based bound."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import theilslopes

from dynaxx.errors import BadInput
from dynaxx.numerics.effective_size import autocorrelation_time


class RemainingGain(NamedTuple):
    """What is left to gain by an end.

    Args:
        expected: If the trend goes on, in units of the values; negative where they rise.
        most: Its upper bound.
    """

    expected: float
    most: float


def remaining_gain(
    at: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"], end: float, *, sure: float = 0.8
) -> RemainingGain:
    """−slope · ln(end / now), the slope over ln t that of Theil and Sen, its bound by Kendall's rank statistic.

    Losses fall as a + b t^−α or faster: over ln t such a curve is convex, so that its past slope promises more than it
    will keep, where a straight line in t promises (end − now) / now · 1 / ln(end / now) times as much again. Outliers
    move neither slope nor bound. The distance from slope to bound is widened by √τ, τ the autocorrelation time of the
    residuals.

    Args:
        at: Times, positive and rising.
        values: The curve with its noise.
        end: The time up to which gains count.
        sure: Probability that the bound holds, for a line in ln t; at least 0.75.

    Returns:
        The gain; 0 where the end has come.

    Raises:
        BadInput: There are fewer than 5 points, times are not positive, or `sure` is out of its range.

    Example:
        >>> at = np.arange(10.0, 101.0, 10.0)
        >>> found = remaining_gain(at, 3 - np.log(at), end=200.0)
        >>> round(found.expected, 4), round(found.most, 4)
        (0.6931, 0.6931)

    References: Theil 1950; Sen 1968.
    """
    if len(at) < 5 or not at[0] > 0:
        raise BadInput(f"remaining_gain(at, values) needs 5 points or more at positive times. Got {len(at)}.")
    if not 0.75 <= sure < 1:  # SciPy reads a two-sided level below a half as its complement
        raise BadInput(f"remaining_gain(sure=...) must be in [0.75, 1). Got {sure}.")
    time = np.log(at)
    slope, offset, low, _ = np.array(theilslopes(values, time, alpha=2 * sure - 1))
    residuals = values - offset - slope * time
    spread = max(1.0, autocorrelation_time(residuals)) if np.ptp(residuals) > 0 else 1.0
    left = max(0.0, math.log(end / at[-1]))
    return RemainingGain(-float(slope) * left, -float(slope - math.sqrt(spread) * (slope - low)) * left)
