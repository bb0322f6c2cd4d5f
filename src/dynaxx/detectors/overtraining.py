"""Overtraining: the training loss falls, the validation rises, sharpness rises, outputs repeat themselves."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Severity, Threshold
from dynaxx.detectors._acts import advice, stop
from dynaxx.detectors._read import LOSS, VALIDATION, Track, optional
from dynaxx.detectors._validation import Validation, accuracy, need_fall, still_better, validation
from dynaxx.detectors._weigh import Suspect, ranked
from dynaxx.errors import NotApplicable

RISE = Threshold(
    value=0.05,
    origin="validation loss above its best by 5 %, half of what overfitting alone needs: other signs stand beside it",
    false_alarms="0 of 65 healthy rescue runs, asked at eight moments each (26 000 steps); seen when it was set",
)
SURE = Threshold(value=3.0, origin="and by three standard deviations of one evaluation", false_alarms="with RISE")
SHARPER = Threshold(
    value=1.5,
    origin="sharpness now over that at the best evaluation; the tracked eigenvalue is exact to a percent",
    false_alarms="with RISE",
)
REPEATS = "samples.repetition|sample_repetition|val_repetition"
"""Share of repeated pieces in the outputs of a fixed set, where the loop logs it."""


class Overtraining(Detector):
    """Train falls and validation rises since the best evaluation, and sharpness or repetition of outputs rises too."""

    code = "V4"
    title = "overtraining"
    reads = (LOSS, VALIDATION)

    def detect(self, run: Log) -> Finding | None:
        """Ask for the two signs that must be, then for the two that may."""
        found = validation(run)
        need_fall(found)
        best = int(found.track.steps[found.best])
        sharper, repeats = _grown(optional(run, "sharpness"), best), _grown(optional(run, REPEATS), best)
        if sharper is None and repeats is None:
            raise NotApplicable("neither sharpness nor the repetition of outputs is known after the best evaluation")
        rise = found.now - found.lowest
        if rise < float(RISE) * found.lowest or rise < float(SURE) * found.noise or not _fell(found):
            return None
        sharp = sharper is not None and sharper > float(SHARPER)
        worn = repeats is not None and repeats > 1.2
        if not (sharp or worn):
            return None
        fine = still_better(accuracy(run), best)
        last = int(found.track.steps[-1])
        severity: Severity = "note" if fine or rise < 0.1 * found.gained else "warning"
        why = f"validation loss rises since step {best}"
        cause = Suspect("overfitting", 0.75, (stop(why), advice("Keep the checkpoint of the best validation loss.")))
        cause.weigh(sharp, 2, f"sharpness has grown {sharper or 0:.2f}-fold since")
        cause.weigh(worn, 2, f"outputs repeat themselves {repeats or 0:.2f} times as often")
        return Finding(
            code=self.code,
            name="overtraining",
            title=f"validation loss {rise / found.lowest:.0%} above its best of step {best}, with other signs",
            severity=severity,
            spans=((best, last),),
            evidence=(
                Evidence(
                    text=f"validation loss {found.lowest:.4g} → {found.now:.4g} while the training loss fell",
                    columns=(found.track.name, "loss"),
                    steps=(best, last),
                    value=rise / found.lowest,
                    threshold=float(RISE),
                ),
                Evidence(text="; ".join(cause.why), columns=("sharpness",), value=sharper, threshold=float(SHARPER)),
            ),
            causes=ranked(cause),
        )


def _fell(found: Validation) -> bool:
    train = found.train[np.isfinite(found.train)]
    return bool(len(train) > 3 and np.median(train[-3:]) < 0.98 * found.train[found.best])


def _grown(found: Track | None, since: int) -> float | None:
    """How much a column has grown since a step, medians over three."""
    if found is None:
        return None
    good = found.finite
    before, after = (
        good.between(0, since).values[-3:],
        good.between(since + 1, good.steps[-1] if len(good) else 0).values[-3:],
    )
    if len(before) < 1 or len(after) < 2 or np.median(before) <= 0:
        return None
    return float(np.median(after) / np.median(before))
