"""Labels that contradict against noise of the training's own: what tells apart why a training loss stands high."""

import numpy as np

from dynaxx.core.findings import Log, Threshold
from dynaxx.detectors._facts import dropout
from dynaxx.detectors._read import LOSS, optional
from dynaxx.detectors._weigh import Suspect
from dynaxx.numerics.robust_scale import CONSISTENT

CONTRADICT = Threshold(
    value=0.95,
    origin="scatter of batch losses over that of a calibrated doubter: 1 in theory; three classifiers of the rescue "
    "suite with 43 % of their labels redrawn have 1.06 to 1.46, with dropout of 0.57 to 0.98 0.57 to 0.88",
    false_alarms="raises no alarm: it parts two causes",
)
POOLED = 0.4
"""Scatter below which a loss averages over more than examples, as over positions of a sequence, or has no hard targets:
0.15 to 0.3 for sequences of 16, 0.05 under label smoothing. It says nothing then."""
ROWS = 160
"""Losses that the scatter is taken from: its standard error is then 8 %."""
HALF = 0.5
"""Dropout from which it is a likely reason for a high training loss."""


def weigh_doubt(run: Log, strong: Suspect, noisy: Suspect) -> None:
    """Weigh too strong a regularisation against noise in the labels.

    Args:
        run: The log.
        strong: "regularisation_too_strong".
        noisy: "label_noise".
    """
    share, spread = dropout(run), scatter(run)
    if share is not None:
        strong.weigh(share >= HALF, 5, f"the model has a dropout of {share:.2g}", against=0.15 if share == 0 else 1.0)
        noisy.weigh(share >= HALF, 0.4, "")
    if spread is not None and spread > POOLED:
        contradict = spread >= float(CONTRADICT)
        said = f"batch losses scatter {spread:.2f} times as much as labels of which no more can be known make them"
        noisy.weigh(contradict, 4, said, against=0.5)
        strong.weigh(contradict, 0.4, "")


def scatter(run: Log) -> float | None:
    """How batch losses scatter, over how they would if the model knew of each label just how likely it is.

    Such a model gives q to one of C classes and the rest evenly to the others, and is right as often: its mean loss is
    H(q) = −q ln q − (1−q) ln((1−q)/(C−1)), and the loss of B examples scatters by √(q(1−q)/B) ln(q(C−1)/(1−q)).
    Dropout and augmentation cost the same in the mean and less in the scatter: an example's loss is spread over many.

    Args:
        run: The log.

    Returns:
        The ratio, over the last `ROWS` losses without their trend; None where it cannot be told.
    """
    loss, width, batch = optional(run, LOSS), optional(run, "outputs.width"), optional(run, "effective_batch")
    if loss is None or width is None or batch is None or loss.values.ndim != 1:
        return None
    values = loss.finite.values[-ROWS:]
    classes, size = float(np.nanmedian(width.values)), float(np.nanmedian(batch.values))
    if len(values) < ROWS or not classes >= 2 or not size >= 1:
        return None
    q = np.linspace(1, 1 / classes, 4098)[1:-1]
    mean = -q * np.log(q) - (1 - q) * np.log((1 - q) / (classes - 1))
    if not mean[0] < np.median(values) < mean[-1]:
        return None
    sure = float(np.interp(np.median(values), mean, q))
    expected = np.sqrt(sure * (1 - sure) / size) * np.log(sure * (classes - 1) / (1 - sure))
    seen = CONSISTENT * float(np.median(np.abs(np.diff(values)))) / np.sqrt(2)
    return seen / float(expected)
