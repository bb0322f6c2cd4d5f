"""Curvature along the run: sharpness and its threshold, stability margin, trace, curvature along the gradient."""

from collections.abc import Sequence

import numpy as np

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Line, Lines, Panel
from dynaxx.figures._build import level, line
from dynaxx.figures._read import named, read, read_some, scale_for
from dynaxx.runlog import LabelledArray, RunView

_NAMES = ("sharpness", "stability_margin", "trace", "directional_curvature")


class Curvature(Figure):
    """Largest eigenvalue, its threshold and the margin between them, trace, directional curvature."""

    title = "Curvature"
    order = 45

    def panels(self, view: RunView) -> Sequence[Panel]:
        """One panel for each that was measured."""
        found = read_some(
            view, _NAMES, "no curvature was measured in this run: watch(..., loss=loss_fn) says what it is of"
        )
        panels: list[Panel] = []
        if "stability_margin" in found:
            panels += _stability(view, found["stability_margin"])
        if "sharpness" in found or "directional_curvature" in found:
            panels.append(_sharpness(view))
        if "trace" in found:
            panels.append(_trace(found["trace"], read(view, "trace.error")))
        return panels


def _stability(view: RunView, margin: LabelledArray) -> list[Panel]:
    panels: list[Panel] = []
    value, threshold = read(view, "stability_margin.sharpness"), read(view, "stability_margin.threshold")
    if value is not None and threshold is not None:
        panels.append(
            Lines(
                title="Preconditioned sharpness against its threshold",
                lines=(_marked(value, "largest eigenvalue"), line(threshold, "threshold", "dashed")),
                y_label=named("λ₁", value.column.unit),
                y_scale=scale_for(value.values, threshold.values),
                note=f"{_about(value)} Above the threshold the step along it overshoots more than it corrects.",
            )
        )
    curve = _marked(margin, "threshold / λ₁")
    panels.append(
        Lines(
            title="Stability margin",
            lines=(curve, level("edge of stability", 1.0, like=curve)),
            y_label="threshold / λ₁",
            y_scale=scale_for(margin.values),
            note="1 is the edge of stability: full-batch training settles there, small batches stay above.",
        )
    )
    return panels


def _sharpness(view: RunView) -> Lines:
    sharpness, directional = read(view, "sharpness"), read(view, "directional_curvature")
    known = [array for array in (sharpness, directional) if array is not None]
    lines: list[Line] = []
    if sharpness is not None:
        lines.append(_marked(sharpness, "λ₁ of the Hessian"))
        bound = read(view, "sharpness.bound")
        if bound is not None and np.array_equal(bound.steps, sharpness.steps):
            lines += _band(sharpness, bound, "λ₁ ± bound")
    if directional is not None:
        lines.append(_marked(directional, "along the gradient"))
    return Lines(
        title="Sharpness, and curvature along the step's gradient",
        lines=tuple(lines),
        y_label=named("curvature", known[0].column.unit),
        y_scale=scale_for(*(array.values for array in known)),
        note="On the probe batch. Along the gradient close to λ₁: steps go across the valley, not along it.",
    )


def _trace(trace: LabelledArray, error: LabelledArray | None) -> Lines:
    same = error is not None and np.array_equal(error.steps, trace.steps)
    return Lines(
        title="Trace of the Hessian",
        lines=(
            _marked(trace, "trace"),
            *(_band(trace, error, "± standard error") if error is not None and same else ()),
        ),
        y_label=named("trace", trace.column.unit),
        y_scale=scale_for(trace.values),
        note="The sum of all eigenvalues, on the probe batch.",
    )


def _marked(array: LabelledArray, label: str) -> Line:
    """Few measurements as points, many as a line."""
    return line(array, label, "line" if len(array) > 2 else "points")


def _band(array: LabelledArray, error: LabelledArray, label: str) -> list[Line]:
    """The error's both ends, faint."""
    ends = [array.values.astype(np.float64) + s * error.values.astype(np.float64) for s in (-1, 1)]
    x = array.steps.astype(np.float64)
    return [
        Line(label=f"{label} ({way})", x=x, y=y, style="faint") for way, y in zip(("low", "high"), ends, strict=True)
    ]


def _about(array: LabelledArray) -> str:
    return array.column.about[:1].upper() + array.column.about[1:] + "."
