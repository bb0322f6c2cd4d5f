"""Whether a noisy series still falls: its trend with errors that know of correlation, and what the trend promises."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri, stdtr, stdtrit

from dynaxx.errors import BadInput
from dynaxx.numerics.effective_size import autocorrelation_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """A straight line through a series.

    Args:
        slope: Change per unit of `at`.
        error: Its standard error, correlation of the residuals taken in.
        level: The line's value at the last point.
        noise: Standard deviation of the residuals.
        correlation: τ of the residuals: n points are worth n/τ.
        freedom: Degrees of freedom of the error: points/τ − 2, at least 1.
    """

    slope: float
    error: float
    level: float
    noise: float
    correlation: float
    freedom: float

    def bound(self, level: float) -> float:
        """The slope that the true one is below with this probability, from Student's t.

        Args:
            level: The probability.

        Returns:
            The upper bound of the slope.
        """
        return self.slope + self.error * float(stdtrit(self.freedom, level))

    def improves(self, by: float, within: float) -> float:
        """P(the line falls by more than `by` within the next `within`), if it goes on straight.

        Args:
            by: δ, in units of the series; 0: any fall.
            within: Steps to come, in units of `at`.

        Returns:
            The probability under Student's t for the slope.

        Example:
            >>> at = np.arange(101.0)
            >>> round(trend(at, np.cos(np.pi * at)).improves(0.0, 10.0), 1)
            0.5
        """
        if self.error <= 0:
            return float(-self.slope * within > by)
        return float(stdtr(self.freedom, (-by / within - self.slope) / self.error))


def trend(at: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"]) -> Trend:
    """Least squares line; its error is that of independent residuals times √τ.

    τ, the autocorrelation time of the residuals, is held at 1 or above: alternating residuals are no reason to be
    surer. For stationary residuals that is the heteroscedasticity- and autocorrelation-consistent error of Newey and
    West (1987) with a bandwidth that follows the data.

    Args:
        at: Where, rising.
        values: The series.

    Returns:
        The trend.

    Raises:
        BadInput: There are fewer than 4 points.

    Example:
        >>> found = trend(np.arange(4.0), np.array([0.0, 2.0, 4.0, 6.0]))
        >>> found.slope, found.level
        (2.0, 6.0)
    """
    count = len(at)
    if count < 4:
        raise BadInput(f"trend(at, values) needs 4 points or more. Got {count}.")
    centred = at - at.mean()
    power = float(centred @ centred)
    slope = float(centred @ values) / power
    residuals = values - values.mean() - slope * centred
    variance = float(residuals @ residuals) / (count - 2)
    time = max(1.0, autocorrelation_time(residuals))
    return Trend(
        slope=slope,
        error=math.sqrt(variance * time / power),
        level=float(values.mean() + slope * centred[-1]),
        noise=math.sqrt(variance),
        correlation=time,
        freedom=max(1.0, count / time - 2),
    )


def points_to_see(improvement: float, noise: float, correlation: float = 1.0, *, sure: float = 0.95) -> float:
    """How many points before, and as many after, it takes to see an improvement of a mean in noise.

        n = 2·τ·(σ (z_sure + z_power) / δ)²

    at one-sided significance 1 − `sure` and power `sure`.

    Args:
        improvement: δ > 0, in units of the series.
        noise: σ of one point, in the same units.
        correlation: τ.
        sure: Probability of not crying wolf, and of seeing it where it is there.

    Returns:
        The number of points; below 1 where one suffices.

    Raises:
        BadInput: The improvement is not positive.

    Example:
        >>> round(points_to_see(0.1, 0.1), 1)
        21.6
    """
    if not improvement > 0:
        raise BadInput(f"points_to_see(improvement=...) must be positive. Got {improvement}.")
    quantile = float(ndtri(sure))
    return 2 * correlation * (noise * 2 * quantile / improvement) ** 2
