"""How large a value must be to be rare: thresholds for a wanted rate of exceedance, from a sample's own tail."""

import math

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from dynaxx.errors import BadInput

TAIL = 0.05
"""Share of the sample that is taken for its tail: large enough for a fit, far enough out for the limit law."""
HEAVIEST = 0.9
"""Largest shape: beyond 1 the tail has no mean, and the fit from weighted moments none either (Hosking 1987)."""
HEAVIER = 2.0
"""Standard errors by which a tail must exceed the normal one before it is taken for heavier."""
SURE = 1.5
"""Standard errors by which the shape is taken on the heavy side: a short sample shows little of its tail."""


def exceedance_threshold(sample: Float[np.ndarray, " n"], rate: float) -> float:
    """The value that a share `rate` of such numbers exceeds, beyond what the sample itself shows.

    Standardised residuals with a tail no heavier than normal get the normal quantile Φ⁻¹(1 − rate). Else a generalised
    Pareto law is fitted to the excesses y over the 95 % quantile u (Pickands 1975) by weighted moments (Hosking and
    Wallis 1987): with a₀ = E y, a₁ = E y(1 − F(y)),

        ξ = 2 − a₀/(a₀ − 2a₁),  σ = 2a₀a₁/(a₀ − 2a₁),  threshold = u + (σ/ξ)·((rate/0.05)^(−ξ) − 1)

    with ξ raised by its error and held within [0, 0.9].

    Args:
        sample: Standardised residuals: median 0 and scale 1, in units of their own robust scale.
        rate: Wanted share, below 0.05.

    Returns:
        The threshold, at least the normal one.

    Raises:
        BadInput: There are fewer than 40 numbers, or the rate is not between 0 and 0.05.

    Example:
        Of a normal sample it is the normal quantile.

        >>> round(exceedance_threshold(ndtri((np.arange(1000) + 0.5) / 1000), 1e-4), 3)
        3.719
    """
    if len(sample) < 40 or not 0 < rate < TAIL:
        raise BadInput(
            f"exceedance_threshold(sample, rate) needs 40 numbers or more and 0 < rate < {TAIL}. "
            f"Got {len(sample)} and {rate}."
        )
    normal = float(-ndtri(rate))
    count = int(np.ceil(TAIL * len(sample)))
    split = len(sample) - count
    ordered = np.partition(sample, split - 1)
    start, excess = float(ordered[split - 1]), np.sort(ordered[split:]) - ordered[split - 1]
    mean = float(excess.mean())
    # An exponential fit to the excesses: its standard error is mean/√count, and it is exact at ξ = 0.
    edge = -float(ndtri(TAIL))
    beyond = math.exp(-edge * edge / 2) / math.sqrt(2 * math.pi) / TAIL - edge
    if start - edge + mean - beyond <= HEAVIER * beyond / np.sqrt(count) and excess[-1] + start <= _record(len(sample)):
        return normal
    weights = 1 - (np.arange(1, count + 1) - 0.35) / count
    second = float((weights * excess).mean())
    spread = mean - 2 * second
    fitted = 2 - mean / spread if spread > 0 else HEAVIEST
    shape = float(np.clip(fitted + SURE / np.sqrt(count), 0.0, HEAVIEST))  # the shape's error is about 1/√count
    scale = mean * (1 - shape)  # the scale that keeps the mean excess, σ/(1 − ξ), where the shape was held
    ratio = np.log(TAIL / rate)
    grown = ratio if shape < 1e-9 else np.expm1(shape * ratio) / shape
    return max(normal, start + scale * float(grown))


def _record(count: int) -> float:
    """The largest of `count` normal numbers is below this in 99 samples of 100."""
    return float(ndtri(0.99 ** (1 / count)))
