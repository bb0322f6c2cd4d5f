"""The exact sign-flip test of whether paired differences are larger than chance gives them a sign."""

import math
from collections.abc import Sequence

import numpy as np

from dynaxx.errors import BadInput

MOST = 16
"""Differences of which all sign patterns are enumerated: 65 536."""


def sign_flip(differences: Sequence[float]) -> float:
    """P(Σ ±dᵢ ≥ Σ dᵢ) over all 2ⁿ patterns of signs: the one-sided p-value of a positive mean (Fisher 1935).

    Args:
        differences: dᵢ, paired differences; at most 16, all finite.

    Returns:
        The p-value, at least 2⁻ⁿ.

    Raises:
        BadInput: There are none or too many, or one is not finite.

    Example:
        >>> sign_flip([2.0, 1.0, 0.5, 1.5]), sign_flip([1.0, -1.0])
        (0.0625, 0.75)
    """
    n = len(differences)
    if not 1 <= n <= MOST or not all(map(math.isfinite, differences)):
        raise BadInput(f"sign_flip(differences) must hold 1 to {MOST} finite numbers. Got {list(differences)}.")
    values = np.asarray(differences, dtype=np.float64)
    signs = 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    slack = 1e-12 * np.abs(values).sum()  # the pattern that was found must not miss itself by rounding
    return float(np.mean(signs @ values >= values.sum() - slack))
