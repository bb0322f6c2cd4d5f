"""AutoTrainer's five symptoms (ICSE 2021), from the published defaults, asked at every evaluation."""

from collections.abc import Mapping

import numpy as np

from dynaxx.core.findings import Log
from dynaxx.rescue.observer import Fired, Rules
from dynaxx.rescue.observers._read import PERIOD, column, every, magnitude, rule


class AutoTrainer(Rules):
    """Vanishing and exploding gradients, dying ReLU, oscillating loss, slow convergence."""

    about = "AutoTrainer (ICSE 2021), published defaults"

    def fired(self, log: Log) -> Mapping[str, Fired | str]:
        """Ask the symptoms; "not converging" is a best accuracy below 0.6."""
        gradient, zeros = every(magnitude(log, "grad_norm"), PERIOD), every(column(log, "grad_zeros"), PERIOD)
        accuracy = column(log, "val_accuracy")
        return {
            "gradient vanish": rule(gradient, lambda g: (_ratio(g) < 1e-3) & (g[:, 0] < 1e-4), "vanishing_gradients"),
            "gradient explode": rule(
                gradient, lambda g: (_ratio(g) > 70) | ~np.isfinite(g).all(axis=1), "exploding_gradients"
            ),
            "dying ReLU": rule(zeros, lambda z: z.mean(axis=1) >= 0.7, "dead_units"),
            "oscillating loss": rule(accuracy, _oscillates, "learning_rate_too_high"),
            "slow convergence": rule(accuracy, _slow, "learning_rate_too_low"),
        }


def _ratio(gradient: np.ndarray) -> np.ndarray:
    """First layer over last."""
    return gradient[:, 0] / np.maximum(gradient[:, -1], 1e-300)


def _oscillates(accuracy: np.ndarray) -> np.ndarray:
    """In a fifth of the evaluations so far, at least three, a local maximum stood 0.03 above the minimum behind it."""
    mask, falls = np.zeros(len(accuracy), dtype=bool), 0
    for i in range(2, len(accuracy)):
        falls += accuracy[i - 1] >= accuracy[i - 2] and accuracy[i - 1] - accuracy[i] >= 0.03
        mask[i] = falls >= max(3, 0.2 * (i + 1))
    return mask


def _slow(accuracy: np.ndarray) -> np.ndarray:
    """After 30 % of the evaluations no step up reached 0.01 and the best is below 0.6."""
    begin = int(np.ceil(0.3 * len(accuracy)))
    gains = np.maximum.accumulate(np.concatenate(([0.0], np.diff(accuracy))))
    slow = (gains < 0.01) & (np.maximum.accumulate(accuracy) < 0.6)
    return slow & (np.arange(len(accuracy)) >= begin)
