"""How many independent numbers a correlated series is worth."""

import numpy as np
from jaxtyping import Float


def autocorrelation_time(values: Float[np.ndarray, " n"]) -> float:
    """τ = 1 + 2 Σ_k ρ_k, summed over pairs of lags while they stay positive, made to fall (Geyer 1992).

    The mean of n values has the variance σ²τ/n, so that they are worth n/τ independent ones.

    Args:
        values: A stationary series; take a trend out first, it would count as correlation.

    Returns:
        τ ≥ 1/n; 1 for white noise, (1 + φ)/(1 − φ) for an autoregression with coefficient φ. 1 for a constant.

    Example:
        >>> round(autocorrelation_time(np.tile([1.0, -1.0], 50)), 2)
        0.01
    """
    count = len(values)
    centred = values - values.mean()
    power = float(centred @ centred)
    if count < 4 or power <= 0:
        return 1.0
    size = 1 << (2 * count - 1).bit_length()
    spectrum = np.fft.rfft(centred, size)
    correlation = np.fft.irfft(spectrum * spectrum.conj(), size)[: count // 2] / power
    even = len(correlation) // 2 * 2
    pairs = correlation[:even].reshape(-1, 2).sum(axis=1)
    ends = np.flatnonzero(pairs <= 0)
    stop = int(ends[0]) if len(ends) else len(pairs)
    falling = np.minimum.accumulate(pairs[:stop])
    return max(2.0 * float(falling.sum()) - 1.0, 1.0 / count)
