"""TheDeepChecker's on-line rules, from its published thresholds (TOSEM 2022), asked every 30 steps."""

from collections.abc import Mapping

import numpy as np

from dynaxx.core.findings import Log
from dynaxx.rescue.observer import Fired, Rules
from dynaxx.rescue.observers._read import PERIOD, Read, column, every, held, magnitude, rule, some


class DeepChecker(Rules):
    """Update ratios, gradients, activations and the loss; the checks before training need the program, not its log."""

    about = "TheDeepChecker (TOSEM 2022), published thresholds"

    def fired(self, log: Log) -> Mapping[str, Fired | str]:
        """Ask the rules."""
        gradient, loss = every(magnitude(log, "grad_norm"), PERIOD), every(column(log, "loss"), PERIOD)
        spread = every(column(log, "activations.std"), PERIOD)
        dead, flat = every(column(log, "activations.dead"), PERIOD), every(column(log, "activations.saturated"), PERIOD)
        ratio, decade = column(log, "update_ratio"), _decade(log)
        return {
            "update ratio too low": rule(decade, lambda d: d < -4, "learning_rate_too_low"),
            "update ratio too high": rule(decade, lambda d: d > -1, "learning_rate_too_high"),
            "untrained layer": rule(ratio, lambda r: held((r == 0).any(axis=1), 10), "frozen_parameters"),
            "vanishing gradient": rule(gradient, _vanishes, "vanishing_gradients"),
            "exploding gradient": rule(gradient, _explodes, "exploding_gradients"),
            "dead neurons": rule(dead, some(lambda d: d > 0.5), "dead_units"),
            "saturated neurons": rule(flat, some(lambda f: f > 0.5), "saturated_activations"),
            "activations out of range": rule(spread, some(lambda s: (s < 0.5) | (s > 2))),
            "loss stagnates": rule(loss, _stagnates),
            "loss diverges": rule(loss, _diverges, "learning_rate_too_high"),
            "loss is zero": rule(loss, lambda v: v < 1e-5, "overfitting"),
        }


def _change(gradient: np.ndarray) -> np.ndarray:
    """From check to check, by layer."""
    return gradient[1:] / np.maximum(gradient[:-1], 1e-300)


def _vanishes(gradient: np.ndarray) -> np.ndarray:
    """Below 1e-6, or halved five times in a row."""
    return np.array([False, *held(some(lambda change: change <= 0.5)(_change(gradient)), 5)]) | (gradient < 1e-6).any(
        axis=1
    )


def _explodes(gradient: np.ndarray) -> np.ndarray:
    """Above 1e6 or no number, or doubled five times in a row."""
    large = ((gradient > 1e6) | ~np.isfinite(gradient)).any(axis=1)
    return np.array([False, *held(some(lambda change: change >= 2)(_change(gradient)), 5)]) | large


def _decade(log: Log) -> Read:
    """log₁₀ of the update ratio, averaged over layers and the last ten measurements."""
    ratio = column(log, "update_ratio")
    if ratio is None:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.nanmean(np.where(ratio[1] > 0, np.log10(ratio[1]), np.nan), axis=1)
    mean = np.array([each[max(0, i - 9) : i + 1].mean() if i >= 9 else np.nan for i in range(len(each))])
    return ratio[0], mean


def _stagnates(loss: np.ndarray) -> np.ndarray:
    """Less than 5 % a check, five times."""
    change = np.abs(np.diff(loss)) / np.abs(loss[:-1])
    return np.array([False, *held(change < 0.05, 5)])


def _diverges(loss: np.ndarray) -> np.ndarray:
    """Twice the smallest so far, five checks in a row; or no number."""
    return held(loss >= 2 * np.fmin.accumulate(loss), 5) | ~np.isfinite(loss)
