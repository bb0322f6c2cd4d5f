"""Amazon SageMaker Debugger's rules, from their published parameters (rulesconfig 1.0.1, 2021; closed source)."""

from collections.abc import Mapping

import numpy as np

from dynaxx.core.findings import Log
from dynaxx.rescue.observer import Fired, Rules
from dynaxx.rescue.observers._read import column, held, magnitude, rule, some

_DATA = "the log holds no labels and inputs"


class SageMaker(Rules):
    """Sixteen rules with their default parameters; four of them need labels or inputs, one has no default."""

    about = "SageMaker Debugger 1.0.34, published parameters"

    def fired(self, log: Log) -> Mapping[str, Fired | str]:
        """Ask the rules."""
        gradient, raw, zeros = magnitude(log, "grad_norm"), column(log, "grad_norm"), column(log, "grad_zeros")
        ratio, loss, seconds = column(log, "update_ratio"), column(log, "loss"), column(log, "system.step_seconds")
        dead, flat = column(log, "activations.dead"), column(log, "activations.saturated")
        return {
            "VanishingGradient": rule(gradient, some(lambda g: g < 1e-7), "vanishing_gradients"),
            "ExplodingTensor": rule(raw, some(lambda g: ~np.isfinite(g)), "exploding_gradients"),
            "DeadRelu": rule(dead, some(lambda d: d > 0.5), "dead_units"),
            "SaturatedActivation": rule(flat, some(lambda f: f > 0.5), "saturated_activations"),
            "PoorWeightInitialization": _initialisation(log),
            "WeightUpdateRatio": rule(ratio, some(lambda r: (r > 10) | (r < 1e-8))),
            "TensorVariance": "it has no default thresholds",
            "AllZero": rule(zeros, some(lambda z: z >= 1), "loss_disconnected"),
            "UnchangedTensor": rule(ratio, lambda r: held((r < 1e-5).any(axis=1), 3), "frozen_parameters"),
            "LossNotDecreasing": rule(loss, _not_decreasing),
            "Overfit": _overfit(log),
            "Overtraining": _overtraining(log),
            "StalledTraining": rule(seconds, lambda s: s > 1800),
            "ClassImbalance": _DATA,
            "Confusion": _DATA,
            "CheckInputImages": _DATA,
            "NLPSequenceRatio": _DATA,
        }


def _initialisation(log: Log) -> Fired | str:
    """In the first ten steps five times: variances of activations apart by ten, or gradients within 1e-3."""
    spread, largest = column(log, "activations.std"), column(log, "grad_max")
    if spread is None or largest is None:
        return "the log does not hold what it reads"
    early = spread[0] <= 10
    variance = np.where(spread[1] > 0, spread[1], np.nan) ** 2
    apart = np.nanmax(variance, axis=1) / np.nanmin(variance, axis=1) > 10
    narrow = np.isin(spread[0], largest[0][(2 * largest[1] < 1e-3).any(axis=1)])
    return Fired(steps=spread[0], mask=held((apart | narrow) & early, 5), cause="initialisation_too_small")


def _not_decreasing(loss: np.ndarray) -> np.ndarray:
    """Against ten steps before: not lower by 0.1 %, or higher by 5 %."""
    mask = np.zeros(len(loss), dtype=bool)
    mask[10:] = (loss[10:] > loss[:-10] * (1 - 1e-3)) & (np.arange(10, len(loss)) % 10 == 0)
    return mask


def _pairs(log: Log) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Steps, training loss and validation loss where both are known."""
    train, validation = column(log, "loss"), column(log, "val_loss")
    if train is None or validation is None:
        return None
    steps, mine, theirs = np.intersect1d(train[0], validation[0], return_indices=True)
    return steps, train[1][mine], validation[1][theirs]


def _overfit(log: Log) -> Fired | str:
    found = _pairs(log)
    if found is None:
        return "there is no validation loss"
    steps, train, validation = found
    return Fired(steps=steps, mask=(validation - train) / train > 0.1, cause="overfitting")


def _overtraining(log: Log) -> Fired | str:
    """Training has not improved by 0.01 in 5 evaluations and validation not in 10."""
    found = _pairs(log)
    if found is None:
        return "there is no validation loss"
    steps, train, validation = found
    return Fired(steps=steps, mask=_patience(train, 5) & _patience(validation, 10), cause="converged")


def _patience(values: np.ndarray, patience: int) -> np.ndarray:
    best = np.minimum.accumulate(values)
    mask = np.zeros(len(values), dtype=bool)
    mask[patience:] = best[:-patience] - best[patience:] < 0.01
    return mask
