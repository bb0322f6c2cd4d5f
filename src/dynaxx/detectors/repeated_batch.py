"""The same batches again and again within one pass over the data."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._facts import checked
from dynaxx.detectors._read import QUIETLY, end_of, rows
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

DISTINCT = Threshold(
    value=0.5,
    origin="share of distinct batches among those of one pass; a sampler without replacement gives 1",
    false_alarms="no alarm in 86 healthy runs of the rescue suite, 34,400 steps, asked every 25",
)
LEAST = 16
"""Measured batches of one pass."""


class RepeatedBatch(Detector):
    """Distinct fingerprints of the inputs within one epoch, against the number of batches that were looked at.

    Across epochs batches return in every fixed order, and in full-batch descent at every step: they do not count. Where
    no epochs are known a small data set looks alike, and it is a note.
    """

    code = "D19"
    title = "repeated batches"
    reads = ("inputs.fingerprint",)

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """Fewer than half are distinct."""
        marks = rows(run, "inputs.fingerprint", least=LEAST)
        known = np.isfinite(marks.values)  # tokens and numbers alike have one; NaN where nothing was seen
        steps, values = marks.steps[known], marks.values[known]
        epochs = self._epochs(run, steps)
        passes, counts = np.unique(epochs, return_counts=True)
        chosen = epochs == passes[counts.argmax()] if len(passes) else np.zeros(0, dtype=bool)
        count = int(chosen.sum())
        if count < LEAST:
            raise NotApplicable(f"{count} batches of one pass over the data were looked at; {LEAST} are needed")
        distinct = len(np.unique(values[chosen]))
        share = distinct / count
        if share > DISTINCT.value:
            return None
        sure = "epoch" in run.columns
        inside = steps[chosen]
        again = checked(run, "input_statistics").get("repeated")
        return Finding(
            code=self.code,
            name="repeated_batch",
            title=f"{count} batches of one pass are {distinct} batches over and over",
            severity="warning" if sure else "note",
            spans=((int(inside[0]), end_of(run)),),
            evidence=(
                Evidence(
                    text=f"{distinct} distinct batches among {count} between the steps {inside[0]} and {inside[-1]}",
                    columns=("inputs.fingerprint", "epoch") if sure else ("inputs.fingerprint",),
                    steps=(int(inside[0]), int(inside[-1])),
                    value=share,
                    threshold=DISTINCT.value,
                ),
            ),
            causes=ranked(
                suspect(
                    "repeated_batch",
                    0.8,
                    4.0 if sure else 0.5,
                    3.0 if again else 1.0,
                    why="the inputs are equal bit for bit",
                    remedies=(
                        Remedy(text="Look at the sampler, the worker seeds and what caches the batch."),
                        Remedy(text="Let the loop ask its loader for the next batch, not a new iterator's first."),
                    ),
                ),
                suspect(
                    "overfitting", 0.3, 1.5 if distinct > 1 else 0.5, why=f"the model sees {distinct} batches only"
                ),
            ),
            test=Test(text="Hash the batches as they come and count how many are alike.", check="input_statistics"),
        )

    @staticmethod
    def _epochs(run: Log, steps: np.ndarray) -> np.ndarray:
        """The pass that each step belongs to; one for all where it is not known."""
        if "epoch" not in run.columns or len(run["epoch"].steps) == 0:
            return np.zeros(len(steps), dtype=np.int64)
        epoch = run["epoch"]
        place = np.clip(np.searchsorted(epoch.steps, steps), 0, len(epoch.steps) - 1)
        return np.ceil(np.nan_to_num(np.asarray(epoch.values)[place]) - 1e-9)
