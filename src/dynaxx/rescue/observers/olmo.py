"""OLMo-core's and Levanter's rule: loss or gradient norm six standard deviations above the mean of the last 128."""

from collections.abc import Mapping

import numpy as np

from dynaxx.core.findings import Log
from dynaxx.rescue.observer import Fired, Rules
from dynaxx.rescue.observers._read import column, rule, trailing


class Olmo(Rules):
    """σ = 6, window 128, active after 64 steps."""

    about = "OLMo-core SkipStepOptimizer 2026-06, defaults"

    def fired(self, log: Log) -> Mapping[str, Fired | str]:
        """Ask it."""
        return {
            "loss": rule(column(log, "loss"), _outliers),
            "gradient norm": rule(column(log, "grad_norm.total"), _outliers),
        }


def _outliers(values: np.ndarray) -> np.ndarray:
    mean, sd = trailing(values, 128)
    return ((values > mean + 6 * sd) & (np.arange(len(values)) >= 64)) | ~np.isfinite(values)
