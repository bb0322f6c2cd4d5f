"""ZClip 1.0.0: a gradient norm 2.5 standard deviations above its moving average is clipped; a clip is an alarm here."""

from collections.abc import Mapping

import numpy as np

from dynaxx.core.findings import Log
from dynaxx.rescue.observer import Fired, Rules
from dynaxx.rescue.observers._read import column, rule


class ZClip(Rules):
    """z = 2.5, α = 0.97, warm-up of 25 steps; the statistics take in the clipped norm."""

    about = "ZClip 1.0.0, defaults"

    def fired(self, log: Log) -> Mapping[str, Fired | str]:
        """Ask it."""
        return {"clip": rule(column(log, "grad_norm.total"), clips)}


def clips(norm: np.ndarray, threshold: float = 2.5, decay: float = 0.97, warmup: int = 25) -> np.ndarray:
    """Where ZClip clips.

    Args:
        norm: float64 of shape (steps,).
        threshold: z.
        decay: α of the moving averages.
        warmup: Steps that only feed the statistics.

    Returns:
        bool of shape (steps,).
    """
    mask = np.zeros(len(norm), dtype=bool)
    if len(norm) <= warmup:
        return mask
    mean, variance = float(np.mean(norm[:warmup])), float(np.var(norm[:warmup]))
    for i in range(warmup, len(norm)):
        value, sd = norm[i], variance**0.5
        z = (value - mean) / (sd + 1e-12)
        mask[i] = not np.isfinite(value) or z > threshold
        taken = mean + threshold * sd / (z / threshold) if mask[i] and np.isfinite(z) else value
        if np.isfinite(taken):
            mean = decay * mean + (1 - decay) * taken
            variance = decay * variance + (1 - decay) * (taken - mean) ** 2
    return mask
