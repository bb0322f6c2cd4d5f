"""A loss that is minimised although it should be maximised, or the other way round."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._facts import groups
from dynaxx.detectors._read import QUIETLY, end_of, rows
from dynaxx.detectors._start import start
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

MIRROR = Threshold(
    value=3.0,
    origin="factor within which −loss of the first step matches the cross-entropy of a guess: a weight of the loss "
    "may lie between",
    false_alarms="no alarm in 95 healthy runs of the rescue suite, 38,000 steps, asked every 25",
)
RISEN = Threshold(
    value=1.5,
    origin="distance from zero against that of the first steps: what is minimised into the negative knows no bound",
    false_alarms="no alarm in 95 healthy runs of the rescue suite, 38,000 steps, asked every 25",
)
LEAST = 10
"""Finite rows: the first three and the last five, apart. A loss that runs into the negative fast is no number by step
16."""


class WrongLossSign(Detector):
    """A classifier whose first loss is minus that of a guess and moves away from zero, or an optimizer that ascends."""

    code = "D36"
    title = "wrong sign of the loss"
    reads = ("loss", "outputs.guess_loss")

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """The sign of the first step, and where the loss goes."""
        begun = start(run)
        loss = rows(run, "loss", least=LEAST)
        values = loss.values[np.isfinite(loss.values)]
        if len(values) < LEAST:
            raise NotApplicable(f"the loss is finite in {len(values)} rows; {LEAST} are needed")
        tail = values[-max(5, len(values) // 10) :]
        first, last = float(np.median(values[:3])), float(np.median(tail))
        grown = abs(last) / max(abs(first), 1e-12)
        mirrored = begun.classes >= 2 and first < 0 and 1 / MIRROR.value <= -begun.loss / begun.guess <= MIRROR.value
        ascends = any(bool(group.get("maximize")) for group in groups(run))
        falls = mirrored and last < first and grown >= RISEN.value
        climbs = ascends and first > 0 and last > first and grown >= RISEN.value
        if not (falls or climbs):
            return None
        span = (int(loss.steps[0]), end_of(run))
        text = (
            f"the first loss, {begun.loss:.3g}, mirrors that of a guess, {begun.guess:.3g}"
            if falls
            else "the optimizer was made with maximize=True"
        )
        return Finding(
            code=self.code,
            name="wrong_loss_sign",
            title=f"the loss runs from {first:.3g} to {last:.3g}: its sign is wrong",
            severity="critical",
            spans=(span,),
            evidence=(
                Evidence(text=text, columns=("loss", "outputs.guess_loss"), value=begun.loss, threshold=-begun.guess),
                Evidence(
                    text=f"it moves away from zero, {grown:.3g}-fold",
                    columns=("loss",),
                    steps=span,
                    value=grown,
                    threshold=RISEN.value,
                ),
            ),
            causes=ranked(
                suspect(
                    "wrong_loss_sign",
                    0.8,
                    5.0 if falls else 2.0,
                    2.0 if grown > 3 else 1.0,
                    why=text,
                    remedies=(Remedy(text="Minimise the loss itself: take out the minus sign, or maximize=True."),),
                ),
                suspect(
                    "learning_rate_too_high",
                    0.1,
                    0.3 if falls else 1.0,
                    why="a loss can run away at a rate too high as well",
                ),
            ),
            test=Test(
                text="Fit one batch on a copy: predictions that get worse while the loss falls have the wrong sign.",
                check="overfit_one_batch",
            ),
        )
