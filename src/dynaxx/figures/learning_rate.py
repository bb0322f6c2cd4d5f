"""The learning rate of every parameter group, and what scales with it: effective batch and epoch."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Lines, Panel
from dynaxx.figures._build import batches, entries, heat_map, line
from dynaxx.figures._read import read, read_some
from dynaxx.runlog import LabelledArray, RunView

FACTORS = {"lr.macro": "macro curve", "lr.micro": "micro modulation", "lr.factor": "actions in force"}


class LearningRate(Figure):
    """Learning rate by group, effective batch and epoch."""

    title = "Learning rate and batch"
    order = 20

    def panels(self, view: RunView) -> Sequence[Panel]:
        """The rate of each group (equal groups as one), the factors in it, the effective batch and the epoch."""
        found = read_some(view, ("lr", "effective_batch", "epoch"), "no learning rate was recorded")
        panels: list[Panel] = []
        if "lr" in found:
            note = "One curve per parameter group; equal ones are one."
            panels.append(entries(found["lr"], "Learning rate", note, "linear"))
        factors = {words: array for name, words in FACTORS.items() if (array := read(view, name)) is not None}
        if factors:
            panels.append(
                Lines(
                    title="Factors that Dynaxx put on the learning rate",
                    lines=tuple(line(array, words, _style(array)) for words, array in factors.items()),
                    y_label="factor",
                    note="Each is shown where it is not 1; the rate is their product times the loop's own.",
                )
            )
        layers = read(view, "lr.meso")
        if layers is not None:
            panels.append(heat_map(layers, "Factor of each layer's learning rate", "", "log"))
        if "effective_batch" in found:
            batch = found["effective_batch"]
            panels.append(
                Lines(
                    title="Effective batch: batch × accumulation × ranks",
                    lines=(batches(batch, batch.column.unit),),
                    y_label=batch.column.unit,
                    note="Without the short last batch of each epoch.",
                )
            )
        if "epoch" in found:
            panels.append(_plain(found["epoch"], "Epoch", "passes over the data"))
        return panels


def _style(array: LabelledArray) -> Literal["line", "points"]:
    """A line would join what lies on both sides of steps in which the factor was 1."""
    return "line" if bool((np.diff(array.steps) == 1).all()) else "points"


def _plain(array: LabelledArray, title: str, words: str) -> Lines:
    return Lines(title=title, lines=(line(array, words),), y_label=words)
