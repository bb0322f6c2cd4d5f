"""One class that outweighs the others, so that predicting it is nearly enough."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._read import QUIETLY, end_of, rows
from dynaxx.detectors._spans import stretches
from dynaxx.detectors._start import start
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

SHARE = Threshold(
    value=0.8,
    origin="mean probability of the top class over batches: SageMaker alarms at classes 10 times as frequent as others",
    false_alarms="no alarm in 95 healthy runs of the rescue suite, 38,000 steps, asked every 25",
)
PERSIST = Threshold(
    value=30.0,
    origin="rows on end with one and the same top class; sorted data change it",
    false_alarms="no alarm in 95 healthy runs of the rescue suite, 38,000 steps, asked every 25",
)


class ClassImbalance(Detector):
    """The mean over a batch of the predicted probabilities: in training it follows the labels' frequencies."""

    code = "D19"
    title = "class imbalance"
    reads = ("outputs.top_share", "outputs.top_class", "outputs.width", "loss")

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """One class at four fifths or more, for long, with a loss below that of a guess."""
        begun = start(run)
        if begun.classes < 3:
            raise NotApplicable(f"outputs have {begun.classes} entries; from 3 on a class can outweigh the others")
        share, index = rows(run, "outputs.top_share", least=int(PERSIST.value)), rows(run, "outputs.top_class")
        if len(share.steps) != len(index.steps):
            raise NotApplicable("the outputs' columns were not measured at the same steps")
        top = (share.values >= SHARE.value) & (index.values >= 0) & np.isfinite(index.values)
        if not top.any():
            return None
        classes, counts = np.unique(index.values[top].astype(np.int64), return_counts=True)
        usual = int(classes[counts.argmax()])
        spans = stretches(share.steps, top & (index.values == usual), int(PERSIST.value), end_of(run))
        loss = rows(run, "loss").values[-20:]
        if not spans or not 0 <= np.nanmedian(loss) < 0.75 * begun.chance:
            return None
        size = float(np.median(share.values[top]))
        val = _validation(run)
        worse = val > 0.9 * begun.chance
        return Finding(
            code=self.code,
            name="class_imbalance",
            title=f"class {usual} has {size:.0%} of the predictions in training",
            severity="warning",
            spans=spans,
            evidence=(
                Evidence(
                    text=f"the mean predicted probability of class {usual} is {size:.0%}, of {begun.classes} classes",
                    columns=("outputs.top_share", "outputs.top_class"),
                    steps=(spans[0][0], spans[-1][1]),
                    value=size,
                    threshold=SHARE.value,
                ),
                Evidence(
                    text=f"the training loss is {np.nanmedian(loss):.3g}, the validation loss {val:.3g}",
                    columns=("loss", "val_loss"),
                ),
            ),
            causes=ranked(
                suspect(
                    "class_imbalance",
                    0.7,
                    4.0 if size > 0.9 else 1.5,
                    1.5 if worse else 1.0,
                    why="predictions follow the frequencies of the labels",
                    remedies=(Remedy(text="Weigh the loss by class, or sample classes evenly."),),
                ),
                suspect(
                    "overfitting",
                    0.2,
                    1.5 if worse else 0.5,
                    why=f"validation {val:.3g} against {np.nanmedian(loss):.3g} in training",
                ),
            ),
            test=Test(text="Count the labels of some batches.", check="input_statistics"),
        )


def _validation(run: Log) -> float:
    if "val_loss" not in run.columns:
        return float("nan")
    values = rows(run, "val_loss").values
    return float(values[-1]) if len(values) else float("nan")
