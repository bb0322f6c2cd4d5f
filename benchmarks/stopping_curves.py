"""Synthetic runs whose validation loss is known without its noise: what a stop gives up is exact.

    val(t) = (floor + fall(t)) · (1 + σ ε(t)),    loss(t) likewise with its own noise, one value a step

`fall` is one of six shapes with drawn constants; ε is white, autoregressive or heavy-tailed. The learning rate that is
logged is the one behind the shape. What a rule does changes nothing in these runs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter

from dynaxx.runlog import Table

STEPS, EVALUATIONS = 2000, 50
Shape = Callable[[np.random.Generator, np.ndarray], tuple[np.ndarray, np.ndarray, str]]
"""Random numbers and time in (0, 1] → the loss above its floor of 1, the rate, and the schedule's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A synthetic run.

    Args:
        kind: Its shape.
        log: loss, val_loss, grad_norm and lr.
        truth: The validation loss without noise at the evaluations.
    """

    kind: str
    log: Table
    truth: np.ndarray


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def power_law(rng: np.random.Generator, time: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """A power law b (1 + t/τ)^−α: from a long way to go to hardly any."""
    fall = _between(rng, 0.3, 3) * (1 + time / _between(rng, 0.001, 0.05)) ** -_between(rng, 0.3, 2.5)
    return fall, np.ones_like(time), "constant"


def exponential(rng: np.random.Generator, time: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """An exponential b e^−t/τ: comes to rest."""
    return _between(rng, 0.3, 3) * np.exp(-time / _between(rng, 0.01, 0.5)), np.ones_like(time), "constant"


def late_drop(rng: np.random.Generator, time: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Rests, then falls by a few to fifty percent more, without a sign before: no rule from the log can know."""
    at, size = rng.uniform(0.15, 0.95), _between(rng, 0.03, 0.5)
    fall = _between(rng, 0.3, 3) * np.exp(-time / _between(rng, 0.01, 0.1))
    return fall + size / (1 + np.exp((time - at) / 0.01)), np.ones_like(time), "constant"


def annealed(rng: np.random.Generator, time: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """A cosine: what the rate holds up falls with it, to the end."""
    rate = 0.5 * (1 + np.cos(np.pi * time))
    fall = _between(rng, 0.3, 3) * np.exp(-time / _between(rng, 0.01, 0.2)) + _between(rng, 0.01, 0.3) * rate
    return fall, rate, "cosine"


def decayed(rng: np.random.Generator, time: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Rests at a constant rate, and gains when that decays over the last fifth."""
    rate = np.minimum(1.0, (1 - time) / 0.2 + 1e-3)
    fall = _between(rng, 0.3, 3) * np.exp(-time / _between(rng, 0.01, 0.1)) + _between(rng, 0.01, 0.3) * rate
    return fall, rate, "wsd"


def memorising(rng: np.random.Generator, time: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Falls, and rises again while the training loss goes on falling."""
    fall = _between(rng, 0.3, 3) * np.exp(-time / _between(rng, 0.01, 0.1))
    return fall + _between(rng, 0.05, 1) * np.maximum(0, time - rng.uniform(0.05, 0.6)), np.ones_like(time), "constant"


SHAPES: dict[str, Shape] = {
    "power law": power_law,
    "exponential": exponential,
    "late drop": late_drop,
    "cosine": annealed,
    "wsd": decayed,
    "memorising": memorising,
}


def noise(rng: np.random.Generator, count: int) -> np.ndarray:
    """Unit scale: white, AR(1) with 0.7, or Student's t with 3 degrees of freedom."""
    kind = rng.integers(3)
    if kind == 0:
        return rng.standard_normal(count)
    if kind == 1:
        return np.sqrt(1 - 0.49) * lfilter([1.0], [1.0, -0.7], rng.standard_normal(count + 50))[50:]
    return rng.standard_t(3, count) / np.sqrt(3)


def draw(kind: str, seed: int) -> Curve:
    """A run of a kind.

    Args:
        kind: A key of `SHAPES`.
        seed: Of everything that is drawn.
    """
    rng = np.random.default_rng([seed, list(SHAPES).index(kind)])
    steps = np.arange(1, STEPS + 1)
    fall, rate, schedule = SHAPES[kind](rng, steps / STEPS)
    at = steps[STEPS // EVALUATIONS - 1 :: STEPS // EVALUATIONS]
    truth = (1 + fall)[at - 1]
    clean = 0.9 * (1 + (np.minimum.accumulate(fall) if kind == "memorising" else fall))
    if kind == "memorising":
        clean *= np.exp(-steps / STEPS)
    deviation, step_deviation = _between(rng, 0.001, 0.03), _between(rng, 0.02, 0.2)
    series = {
        "loss": (steps, clean * np.exp(step_deviation * noise(rng, STEPS))),
        "val_loss": (at, truth * np.exp(deviation * noise(rng, EVALUATIONS))),
        "grad_norm": (steps, (0.3 + fall / fall.max()) * np.exp(0.3 * noise(rng, STEPS))),
        "lr": (steps, 0.1 * rate),
    }
    facts = {"facts": {"schedule": schedule}, "steps": STEPS, "model": {"layers": []}}
    group = {"lr": 0.1, "weight_decay": 0.0}
    log = Table(series, manifest={**facts, "optimizer": {"class": "SGD", "groups": [group]}})
    return Curve(kind=kind, log=log, truth=truth)
