"""The learning rate of every parameter group, and what scales with it: effective batch and epoch."""

from collections.abc import Sequence

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Lines, Panel
from dynaxx.figures._build import entries, line
from dynaxx.figures._read import read, read_some
from dynaxx.runlog import LabelledArray, RunView


class LearningRate(Figure):
    """Learning rate by group, effective batch and epoch."""

    title = "Learning rate and batch"
    order = 20

    def panels(self, view: RunView) -> Sequence[Panel]:
        """The rate of each group (equal groups as one), the effective batch and the epoch."""
        found = read_some(view, ("lr", "effective_batch", "epoch"), "no learning rate was recorded")
        panels: list[Panel] = []
        if "lr" in found:
            note = "One curve per parameter group; equal ones are one."
            panels.append(entries(found["lr"], "Learning rate", note, "linear"))
        factor = read(view, "lr.factor")
        if factor is not None and (factor.values != 1.0).any():
            panels.append(_plain(factor, "Factor that Dynaxx put on the learning rate", "factor"))
        if "effective_batch" in found:
            batch = found["effective_batch"]
            panels.append(_plain(batch, "Effective batch: batch × accumulation × ranks", batch.column.unit))
        if "epoch" in found:
            panels.append(_plain(found["epoch"], "Epoch", "passes over the data"))
        return panels


def _plain(array: LabelledArray, title: str, words: str) -> Lines:
    return Lines(title=title, lines=(line(array, words),), y_label=words)
