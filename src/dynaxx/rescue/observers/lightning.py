"""Lightning's SpikeDetection (2.6.6): twice above the running mean of ten losses, and above the last one."""

from collections.abc import Mapping

import numpy as np

from dynaxx.core.findings import Log
from dynaxx.rescue.observer import Fired, Rules
from dynaxx.rescue.observers._read import column, rule, trailing


class Lightning(Rules):
    """rtol 2 over a window of ten, and losses that are not finite."""

    about = "Lightning SpikeDetection 2.6.6, defaults"

    def fired(self, log: Log) -> Mapping[str, Fired | str]:
        """Ask it."""
        return {"spike": rule(column(log, "loss"), _spikes)}


def _spikes(loss: np.ndarray) -> np.ndarray:
    mean, _ = trailing(loss, 10)
    last = np.concatenate(([np.inf], loss[:-1]))
    high = (np.abs(loss - mean) >= 2 * np.abs(mean)) & (loss > last) & (np.arange(len(loss)) >= 10)
    return high | ~np.isfinite(loss)
