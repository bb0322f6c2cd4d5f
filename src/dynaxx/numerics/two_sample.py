"""Whether two stretches of a series differ, in level or in law at all: tests that know of correlation."""

import math

import numpy as np
from jaxtyping import Float
from scipy.special import kolmogorov, ndtr

from dynaxx.numerics.effective_size import autocorrelation_time


def rank_shift(before: Float[np.ndarray, " n"], after: Float[np.ndarray, " m"]) -> tuple[float, float]:
    """Mann and Whitney's test (1947) that `after` lies above `before`, with effective sample sizes.

    U counts the pairs in which the later value is larger; under equal laws its mean is nm/2 and its variance
    nm(n + m + 1)/12. The statistic is divided by √τ, τ the autocorrelation time of the earlier stretch, at
    least 1: that shows how values hang together where nothing changes, the later one may have a trend.

    Args:
        before: One stretch.
        after: The other.

    Returns:
        The share U/(nm) of pairs in which the later value is larger, ties half, and the one-sided p-value (normal
        limit; too small to trust below 8 values a side, where the smallest p-value that there can be is returned).

    Example:
        >>> share, p = rank_shift(np.array([3.0, 1, 4, 2, 5, 1, 4, 2]), np.array([9.0, 7, 8, 9, 6, 8, 6, 9]))
        >>> share, p < 0.002
        (1.0, True)
    """
    n, m = len(before), len(after)
    if n == 0 or m == 0:
        return 0.5, 1.0
    ordered = np.sort(before)
    below, upto = np.searchsorted(ordered, after, "left"), np.searchsorted(ordered, after, "right")
    pairs = float((below + upto).sum()) / 2
    time = max(1.0, autocorrelation_time(before))
    deviation = math.sqrt(n * m * (n + m + 1) / 12 * time)
    p = float(ndtr((n * m / 2 + 0.5 - pairs) / deviation))
    return pairs / (n * m), max(p, 1.0 / math.comb(n + m, n)) if n + m < 60 else p


def law_shift(before: Float[np.ndarray, " n"], after: Float[np.ndarray, " m"]) -> tuple[float, float]:
    """Kolmogorov and Smirnov's test (1939) that two stretches have one law, with effective sample sizes.

    D = sup |F − G| of the empirical distributions; p from the limit law of √(nm/(n + m)/τ) D, τ as in `rank_shift`.

    Args:
        before: One stretch, not empty.
        after: The other, not empty.

    Returns:
        D and the two-sided p-value.

    Example:
        >>> distance, p = law_shift(np.arange(4.0) % 2, np.arange(4.0) % 2 + 5)
        >>> distance
        1.0
    """
    n, m = len(before), len(after)
    both = np.concatenate([before, after])
    first, second = np.sort(before), np.sort(after)
    gap = np.searchsorted(first, both, "right") / n - np.searchsorted(second, both, "right") / m
    distance = float(np.abs(gap).max())
    time = max(1.0, autocorrelation_time(before))
    return distance, float(kolmogorov(math.sqrt(n * m / (n + m) / time) * distance))
