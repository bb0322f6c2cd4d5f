"""training-doctor 0.1.0's rules on loss and gradient norm, from its published thresholds."""

from collections.abc import Callable, Mapping

import numpy as np

from dynaxx.core.findings import Log
from dynaxx.rescue.observer import Fired, Rules
from dynaxx.rescue.observers._read import column, rule, trailing


class TrainingDoctor(Rules):
    """Spikes of 3.5 σ in 100, rises of 3 % in 250, gradients above 10 or below 0.01, flat over 200, a growing gap."""

    about = "training-doctor 0.1.0, published thresholds"

    def fired(self, log: Log) -> Mapping[str, Fired | str]:
        """Ask the rules."""
        loss, norm = column(log, "loss"), column(log, "grad_norm.total")
        return {
            "loss spike": rule(loss, _spikes),
            "divergence": rule(loss, lambda v: _compared(v, 250, lambda a, b: b > 1.03 * a), "learning_rate_too_high"),
            "plateau": rule(loss, lambda v: _compared(v, 200, lambda a, b: abs(b - a) < 1e-3 * abs(a))),
            "exploding gradients": rule(norm, lambda n: n > 10, "exploding_gradients"),
            "vanishing gradients": rule(norm, lambda n: _third(n < 0.01), "vanishing_gradients"),
            "not finite": rule(loss, lambda v: ~np.isfinite(v)),
        }


def _spikes(loss: np.ndarray) -> np.ndarray:
    mean, sd = trailing(loss, 100)
    return (loss > mean + 3.5 * sd) & (np.arange(len(loss)) >= 20)


def _third(mask: np.ndarray) -> np.ndarray:
    """Whether it holds in more than a third of the last hundred."""
    return np.array([i >= 99 and mask[i - 99 : i + 1].mean() > 1 / 3 for i in range(len(mask))])


def _compared(loss: np.ndarray, window: int, differs: Callable[[float, float], bool]) -> np.ndarray:
    """The mean of the window's second half against its first."""
    half = window // 2
    return np.array(
        [
            i + 1 >= window
            and bool(differs(loss[i + 1 - window : i + 1 - half].mean(), loss[i + 1 - half : i + 1].mean()))
            for i in range(len(loss))
        ]
    )
