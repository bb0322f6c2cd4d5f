"""A validation loss: its best point, how far one evaluation wanders by chance, and the training loss beside it."""

from dataclasses import dataclass

import numpy as np

from dynaxx.core.findings import Log
from dynaxx.detectors._read import LOSS, VALIDATION, Track, optional, unbroken
from dynaxx.errors import NotApplicable
from dynaxx.numerics.robust_scale import CONSISTENT

LEAST = 8
"""Fewest evaluations: a best one, its neighbours, and enough after it to see a rise that is not one evaluation's."""
LEAP = 10.0
"""From one evaluation to the next: overfitting takes many, and the noise of one is far below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Evaluations of a run.

    Args:
        track: All finite ones.
        smooth: Running median over three of them.
        best: Index of the lowest smooth value.
        noise: Standard deviation of one evaluation about its trend, robust.
        train: The training loss at the evaluations: median over the steps since the evaluation before.
    """

    track: Track
    smooth: np.ndarray
    best: int
    noise: float
    train: np.ndarray

    @property
    def now(self) -> float:
        """The smoothed last value: the median of the last three."""
        return float(np.median(self.track.values[-3:]))

    @property
    def lowest(self) -> float:
        """The lowest smooth value."""
        return float(self.smooth[self.best])

    @property
    def gained(self) -> float:
        """How far it fell from its first value to its lowest."""
        return float(self.track.values[0] - self.lowest)


def validation(run: Log, least: int = LEAST) -> Validation:
    """Read the evaluations.

    Args:
        run: The log.
        least: Fewest that a conclusion can be drawn from.

    Returns:
        They, with the training loss beside them.

    Raises:
        NotApplicable: There are too few, or no training loss to set beside them.
    """
    track, loss = unbroken(run, VALIDATION, least), unbroken(run, LOSS, 16)
    padded = np.concatenate([track.values[:1], track.values, track.values[-1:]])
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(padded, 3), axis=1)
    second = track.values[2:] - 2 * track.values[1:-1] + track.values[:-2]
    noise = CONSISTENT * float(np.median(np.abs(second))) / np.sqrt(6)  # of white noise: Var(second) = 6σ²
    return Validation(
        track=track, smooth=smooth, best=int(np.argmin(smooth)), noise=noise, train=beside(loss, track.steps)
    )


def leapt(found: Validation) -> int | None:
    """The evaluation at which the validation leapt `LEAP`-fold and never came back, while the training loss stayed.

    Weights that fit the training data as well as before do not lose what they knew between two evaluations: what
    evaluation adds to them has changed, such as running statistics of a normalisation.

    Args:
        found: The evaluations.

    Returns:
        Its index; None where there is none.
    """
    values, train = found.track.values, found.train
    if values.min() <= 0:
        return None
    at = int(np.argmax(values[1:] / values[:-1])) + 1
    moved = train[at] > 2 * np.nanmedian(train[max(0, at - 3) : at])
    stayed = values[at:].min() > LEAP / 3 * values[at - 1]
    return at if values[at] > LEAP * values[at - 1] and stayed and not moved else None


def beside(loss: Track, steps: np.ndarray) -> np.ndarray:
    """Medians of the training loss between evaluations, NaN where there is no row."""
    ends = np.searchsorted(loss.steps, steps, side="right")
    starts = np.concatenate([[0], ends[:-1]])
    return np.array(
        [np.median(loss.values[max(a, b - 32) : b]) if b > a else np.nan for a, b in zip(starts, ends, strict=True)]
    )


def accuracy(run: Log) -> Track | None:
    """A measure of the validation that is better when larger, where the log has one.

    Args:
        run: The log.

    Returns:
        The track of the first such column, finite rows only.
    """
    for name in run.columns:
        if name.startswith(("val_", "eval_", "validation_")) and name.endswith(("accuracy", "acc", "f1", "auc")):
            found = optional(run, name)
            if found is not None and found.values.ndim == 1 and len(found.finite) >= LEAST:
                return found.finite
    return None


def still_better(metric: Track | None, since: int) -> bool | None:
    """Whether a measure is at least as good now as it was up to a step, within its own wander.

    Args:
        metric: Larger is better.
        since: The step.

    Returns:
        The answer; None where there is no measure.
    """
    if metric is None:
        return None
    before, after = metric.between(0, since).values, metric.values[-3:]
    if len(before) == 0:
        return None
    wander = CONSISTENT * float(np.median(np.abs(np.diff(metric.values[-8:])))) / np.sqrt(2)
    return bool(np.median(after) >= np.max(before) - max(wander, 0.005))


def need_fall(found: Validation) -> None:
    """Refuse losses that cannot be set beside each other as shares.

    Args:
        found: The evaluations.

    Raises:
        NotApplicable: The validation loss is not positive, or the training loss is of the other sign.
    """
    if found.lowest <= 0:
        raise NotApplicable(f"{found.track.name} is not positive: shares of it mean nothing")
    beside = found.train[np.isfinite(found.train)]
    if len(beside) and beside.max() < 0:
        raise NotApplicable(
            f"{found.track.name} is positive and the training loss negative: they do not measure the same"
        )
