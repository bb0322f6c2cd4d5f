"""Gradient noise: the noise scale against the batch in use, what it is made of, and how far gradients agree."""

from collections.abc import Sequence

import numpy as np

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Line, Lines, Panel
from dynaxx.figures._build import batches, level, line
from dynaxx.figures._read import read, read_some, scale_for, sentence
from dynaxx.runlog import LabelledArray, RunView

_NAMES = (
    "gradient_noise", "gradient_agreement", "gradient_agreement.cancellation", "gradient_agreement.tail_index"
)  # fmt: skip


class GradientNoise(Figure):
    """Noise scale, agreement of gradients, cancellation between layers."""

    title = "Gradient noise"
    order = 35

    def panels(self, view: RunView) -> Sequence[Panel]:
        """Noise scale and batch, covariance against signal, cosines, cancellation."""
        found = read_some(view, _NAMES, "no gradient noise was measured in this run")
        panels: list[Panel] = []
        if "gradient_noise" in found:
            panels.append(_scale(view, found["gradient_noise"]))
            panels += _parts(view)
        cosines = _cosines(view)
        if cosines:
            panels.append(
                Lines(
                    title="Agreement of gradients",
                    lines=(*cosines, level("none", 0.0, like=cosines[0])),
                    y_label="cosine",
                    note="1: they repeat each other; 0: noise, or a fast turn; below 0: steps overshoot.",
                )
            )
        if "gradient_agreement.cancellation" in found:
            panels.append(
                Lines(
                    title="Cancellation of the update between layers",
                    lines=(line(found["gradient_agreement.cancellation"], "cancellation"),),
                    y_label="1 − |Σ| / Σ|·|",
                    note="0: all layers pull the loss the same way; 1: they undo each other, to first order.",
                )
            )
        if "gradient_agreement.tail_index" in found:
            panels.append(_tails(view))
        return panels


def _tails(view: RunView) -> Lines:
    names = {"tail_index": "this run", "tail_null": "Gaussian noise"}
    arrays = {label: read(view, f"gradient_agreement.{name}") for name, label in names.items()}
    return Lines(
        title="Tail index of gradient noise",
        lines=tuple(line(array, label, "points") for label, array in arrays.items() if array is not None),
        y_label="stable index α",
        note="Below the Gaussian's where single batches dominate; what is as low by chance, .tail_p says.",
    )


def _scale(view: RunView, scale: LabelledArray) -> Lines:
    batch = read(view, "effective_batch")
    shown = [line(scale, "noise scale")]
    if batch is not None:
        shown.append(batches(batch, "batch in use", "dashed"))
    return Lines(
        title="Gradient noise scale (examples)",
        lines=tuple(shown),
        y_label="examples",
        y_scale=scale_for(*(each.y for each in shown)),
        note=f"{sentence(scale.column.about)} Batches far below it are ruled by noise, far above it wasteful. "
        "No line where no signal stands out of the noise.",
    )


def _parts(view: RunView) -> list[Panel]:
    found = {name: read(view, f"gradient_noise.{name}") for name in ("trace", "gradient")}
    lines = tuple(line(array, _LABELS[name]) for name, array in found.items() if array is not None)
    if not lines:
        return []
    return [
        Lines(
            title="Noise and signal of the gradient",
            lines=lines,
            y_label="(loss/parameter)²",
            y_scale=scale_for(*(each.y for each in lines)),
            note="Unbiased, one measurement each: single ones of the signal may be negative.",
        )
    ]


_LABELS = {"trace": "tr Σ of one example", "gradient": "‖G‖²"}


def _cosines(view: RunView) -> list[Line]:
    named = {"gradient_agreement": "with the last measured step", "gradient_noise.cosine": "between parts of a batch"}
    arrays = {label: array for name, label in named.items() if (array := read(view, name)) is not None}
    return [line(array, label) for label, array in arrays.items() if np.isfinite(array.values).any()]
