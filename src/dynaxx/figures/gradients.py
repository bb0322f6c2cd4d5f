"""Gradient norms by layer and for the whole model, their spread, extremes, and clipping."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import HeatMap, Lines, Panel, Table
from dynaxx.figures._build import heat_map, level, line, quantiles
from dynaxx.figures._read import named, read, read_some, scale_for
from dynaxx.runlog import LabelledArray, RunView

_TABLE_ROWS = 20


class Gradients(Figure):
    """Gradients of the layers and of the model."""

    title = "Gradients"
    order = 30

    def panels(self, view: RunView) -> Sequence[Panel]:
        """Total norm, norm by layer, spread over layers, first against last layers, clipping, maxima, zeros, NaN."""
        found = read_some(
            view, ("grad_norm", "grad_max", "grad_zeros", "grad_nonfinite"), "no gradient was measured in this run"
        )
        panels: list[Panel] = []
        total, clip = read(view, "grad_norm.total"), read(view, "clip_coefficient")
        if total is not None:
            panels.append(_total(total, _seen(view)))
        if "grad_norm" in found:
            norms = found["grad_norm"]
            panels.append(_heat_map(norms, "Gradient norm by layer"))
            if norms.values.shape[1] >= 3:
                spread = "Layers drift apart as this opens."
                panels.append(quantiles(view, "grad_norm", "Spread of the gradient norm over layers", spread))
                panels.append(_early_to_late(view["grad_norm.early_to_late"]))
        if clip is not None:
            panels.append(_clipping(clip))
        if "grad_max" in found:
            panels.append(_heat_map(found["grad_max"], "Largest gradient entry by layer"))
        if "grad_zeros" in found:
            panels.append(
                heat_map(found["grad_zeros"], "Fraction of gradient entries that are exactly zero", "", "linear")
            )
        if "grad_nonfinite" in found and np.nansum(found["grad_nonfinite"].values) > 0:
            panels.append(_nonfinite(found["grad_nonfinite"]))
        return panels


def _seen(view: RunView) -> str:
    """What the self-test found the gradients to be: before or after clipping, scaled or not."""
    seen = [str(event["seen"]) for event in view.events("self_test") if event.get("seen")]
    return f"As seen: {seen[-1]}." if seen else ""


def _total(total: LabelledArray, note: str) -> Lines:
    return Lines(
        title=named("Gradient norm of the whole model", total.column.unit),
        lines=(line(total, "all layers"),),
        y_label="gradient norm",
        y_scale="log",
        note=note,
    )


def _early_to_late(ratio: LabelledArray) -> Lines:
    curve = line(ratio, "first / last")
    return Lines(
        title="Gradient norm of the first third of the layers over that of the last third",
        lines=(curve, level("equal", 1.0, like=curve)),
        y_label="ratio of means",
        y_scale="log",
        note="Far below 1 gradients vanish on their way down, far above 1 they explode.",
    )


def _clipping(clip: LabelledArray) -> Lines:
    finite = clip.values[np.isfinite(clip.values)]
    share = float(np.mean(finite < 1.0)) if finite.size else 0.0
    return Lines(
        title="Clip coefficient",
        lines=(line(clip, "coefficient"),),
        y_label="factor on the gradient",
        y_scale=scale_for(clip.values),
        note=f"1 leaves the gradient as it is; {share:.0%} of the steps were clipped.",
    )


def _heat_map(array: LabelledArray, title: str) -> HeatMap:
    """Norms by layer; a missing gradient counts as zero in them, so that a NaN is one of the gradient's own."""
    panel = heat_map(array, title, scale="log")
    return replace(panel, values=np.where(np.isnan(panel.values), np.inf, panel.values))


def _nonfinite(counts: LabelledArray) -> Table:
    steps = np.flatnonzero((counts.values > 0).any(axis=1))
    rows: list[tuple[str, ...]] = []
    for i in steps[:_TABLE_ROWS]:
        layers = np.flatnonzero(counts.values[i] > 0)
        entries = f"{counts.values[i].sum():.0f}"
        rows.append(
            (str(counts.steps[i]), counts.labels[layers[0]], counts.labels[layers[-1]], str(len(layers)), entries)
        )
    return Table(
        title="Steps whose gradient has NaN or infinite entries",
        header=("step", "first layer with them", "last layer", "layers", "entries"),
        rows=tuple(rows),
        note=f"{len(steps)} such steps; {len(rows)} listed. Backward passes carry NaN towards the first layer.",
    )
