"""What the log says of the first step: is it a classifier's, and how decided was the model before it learned."""

import math
from typing import NamedTuple

import numpy as np

from dynaxx.core.findings import Log, Series, Threshold
from dynaxx.detectors._read import rows
from dynaxx.errors import NotApplicable

LATEST = 3
"""The first measured step at the latest: later ones show a model that has learned."""
NEAR = 0.25
"""Share by which a classifier's first loss may differ from the loss of a guess: labels of one batch are not drawn
evenly. Of 64 examples and 10 classes the standard deviation is 3 % at the usual scale of logits."""


TRAINED = Threshold(
    value=0.6,
    origin="first loss over ln C below which the model knew its classes before the first step: 0.02 to 0.38 in four "
    "fine-tunings of the rescue suite, 0.82 and more in 305 trainings from new weights",
    false_alarms="raises no alarm: it makes notes of alarms about short steps and standing losses",
)


class Start(NamedTuple):
    """The first step.

    Args:
        classes: Entries of an output vector.
        guess: Cross-entropy of the first outputs with labels that know nothing of them, in nats.
        loss: The first loss; NaN where it was not logged.
        step: The first measured step.
    """

    classes: int
    guess: float
    loss: float
    step: int

    @property
    def chance(self) -> float:
        """Ln C: what indifferent outputs lose."""
        return math.log(self.classes)

    @property
    def excess(self) -> float:
        """By how many nats the first outputs are worse than indifferent ones."""
        return self.guess - self.chance

    @property
    def classifies(self) -> bool:
        """Whether the logged loss is the cross-entropy of these outputs, as far as the first step can tell."""
        return self.classes >= 2 and abs(self.loss - self.guess) <= NEAR * self.guess


def start(run: Log) -> Start:
    """Read the first step.

    Args:
        run: The log.

    Returns:
        What it says.

    Raises:
        NotApplicable: The log does not hold it, or the model returns no vectors.
    """
    if "outputs.guess_loss" not in run.columns or "outputs.width" not in run.columns:
        raise NotApplicable("the log does not hold the model's outputs (signal outputs)")
    guess, width = rows(run, "outputs.guess_loss", least=1), rows(run, "outputs.width", least=1)
    if int(guess.steps[0]) > LATEST:
        raise NotApplicable(f"the log begins at step {guess.steps[0]}: it does not show the first steps")
    if not np.isfinite(width.values[0]):
        raise NotApplicable("the model returns no vectors that could be logits")
    loss = float("nan")
    if "loss" in run.columns:
        logged = rows(run, "loss", least=1)
        first = np.flatnonzero(logged.steps <= LATEST)
        loss = float(logged.values[first[0]]) if len(first) else loss
    return Start(round(float(width.values[0])), float(guess.values[0]), loss, int(guess.steps[0]))


def excess(run: Log) -> float:
    """By how many nats a classifier's first outputs were worse than indifferent ones.

    Args:
        run: The log.

    Returns:
        Nats; NaN where it is no classifier or the log does not show its start.
    """
    try:
        found = start(run)
    except NotApplicable:
        return float("nan")
    return found.excess if found.classes >= 2 else float("nan")


def trained(run: Log) -> bool:
    """Whether a classifier knew its classes before the first step: short steps and little gain are then meant.

    Args:
        run: The log.

    Returns:
        True where its first loss is far below that of a guess; False also where that cannot be told.
    """
    try:
        found = start(run)
    except NotApplicable:
        return False
    return found.classes >= 2 and 0 <= found.loss < float(TRAINED) * found.chance


def largest_step(run: Log) -> float:
    """The largest median relative update of a layer over the first 20 measured steps.

    Args:
        run: The log.

    Returns:
        ‖Δθ_l‖/‖θ_l‖; 0 where it was not measured.
    """
    if "update_ratio" not in run.columns:
        return 0.0
    values = rows(run, "update_ratio").values[:20]
    values = values[:, np.isfinite(values).all(axis=0)] if len(values) else values
    return float(np.median(values, axis=0).max()) if values.size else 0.0


def weights_left(run: Log) -> float:
    """The size of all weights at the last measured step over that at the first.

    Args:
        run: The log.

    Returns:
        The ratio; 1 where it was not measured.
    """
    if "parameter_norm" not in run.columns:
        return 1.0
    values = rows(run, "parameter_norm").values
    size = np.sqrt((values**2).sum(axis=1))
    size = size[np.isfinite(size)]
    return float(size[-1] / size[0]) if len(size) and size[0] > 0 else 1.0


def elasticity(run: Log, steps: int = 20) -> float:
    """‖g‖‖θ‖/|L| in the median of the first measured steps: relative change of the loss with that of the weights.

    Args:
        run: The log.
        steps: How many of them.

    Returns:
        The ratio; NaN where it was not measured.
    """
    if any(name not in run.columns for name in ("grad_norm", "parameter_norm", "loss")):
        return float("nan")
    slope, size, loss = run["grad_norm"], run["parameter_norm"], run["loss"]
    shared = np.intersect1d(np.intersect1d(slope.steps, size.steps), loss.steps)[:steps]
    if len(shared) == 0:
        return float("nan")

    def at(series: Series) -> np.ndarray:
        values = np.asarray(series.values)[np.searchsorted(series.steps, shared)].astype(np.float64)
        return np.sqrt((values**2).sum(axis=1)) if values.ndim == 2 else np.abs(values)

    with np.errstate(all="ignore"):  # a loss of 0, gradients that are not finite
        ratio = at(slope) * at(size) / at(loss)
    ratio = ratio[np.isfinite(ratio)]
    return float(np.median(ratio)) if len(ratio) else float("nan")
