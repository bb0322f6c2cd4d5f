"""LLM Foundry's KillLossSpike (2025): twice the running mean for five steps in a row."""

from collections.abc import Mapping

import numpy as np

from dynaxx.core.findings import Log
from dynaxx.rescue.observer import Fired, Rules
from dynaxx.rescue.observers._read import column, held, rule, trailing


class Foundry(Rules):
    """Window of max(100, 5 % of the run), patience four; the loss cap is left out, since it is in nats of a text."""

    about = "LLM Foundry KillLossSpike 2025-07, defaults"

    def fired(self, log: Log) -> Mapping[str, Fired | str]:
        """Ask it."""
        return {"spike": rule(column(log, "loss"), _killed)}


def _killed(loss: np.ndarray) -> np.ndarray:
    window = max(100, len(loss) // 20)
    mean, _ = trailing(loss, window)
    return held((loss >= 2 * mean) & (np.arange(len(loss)) >= window), 5)
