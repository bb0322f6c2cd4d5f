"""Whether numbers lie on the evenly spaced grid that a number format has close to zero."""

import numpy as np

CLOSE = 1e-3
"""How close to a whole multiple of the smallest a value must be, relative to itself."""
LEVELS = 64
"""Multiples beyond which rounding to three digits would make any value look like one."""
LEAST = 10


def grid(values: np.ndarray) -> float:
    """The number that all positive values are small whole multiples of.

    Args:
        values: Shape (rows,); zeros and what is not finite are left out.

    Returns:
        The number; 0 where there is none, or too few values repeat to tell.

    Example:
        >>> grid(np.array([0.0, 0.25, 0.5, 0.25, 0.25, 0.5, 0.5, 0.25, 0.75, 0.25, 0.25]))
        0.25
    """
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) < LEAST:
        return 0.0
    multiples = values / values.min()
    if multiples.max() > LEVELS or (np.abs(multiples - np.round(multiples)) > CLOSE * multiples).any():
        return 0.0
    return float(values.min()) if len(np.unique(np.round(multiples))) <= len(values) / 2 else 0.0
