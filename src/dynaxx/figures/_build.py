"""Panels that several figures are made of: a column as lines or heat-map, and its quantiles over the entries."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from scipy.ndimage import median_filter

from dynaxx.core.panels import HeatMap, Line, Lines, Scale
from dynaxx.errors import NotApplicable
from dynaxx.figures._read import named, read, scale_for, sentence
from dynaxx.runlog import LabelledArray, RunView

Style = Literal["line", "points", "faint", "dashed"]

FEW = 50
"""Series of fewer points are drawn as they are; smoothing would hide what little there is."""
MOST_LINES = 8
"""More curves than this cannot be told apart; a heat-map shows them."""


def line(array: LabelledArray, label: str, style: Style = "line") -> Line:
    """A scalar column as a curve.

    Args:
        array: Labelled array with values of shape (steps,).
        label: Its name in the legend.
        style: As in `Line`.

    Returns:
        The curve.
    """
    return Line(label=label, x=array.steps.astype(np.float64), y=array.values.astype(np.float64), style=style)


def batches(array: LabelledArray, label: str, style: Style = "line") -> Line:
    """The effective batch as a curve, without the short last batch of each epoch: the median of nine neighbours.

    Args:
        array: The column `effective_batch`.
        label: Its name in the legend.
        style: As in `Line`.

    Returns:
        The curve.
    """
    raw = line(array, label, style)
    return replace(raw, y=median_filter(raw.y, size=9, mode="nearest"))


def smoothed(view: RunView, name: str, label: str) -> tuple[Line, ...]:
    """A scalar column as a curve, smoothed over faint raw values where it is long and even.

    Smoothing counts points, so that it would lag behind far where a signal backs off from every step to every 100th.
    The smoothed curve breaks where the raw value is not finite, so that it does not go on through a divergence.

    Args:
        view: The run, which has the column.
        name: The column's name.
        label: Its name in the legend; "" where the panel shows nothing else.

    Returns:
        One curve, or the raw one and the smoothed one.
    """
    raw, smooth = read(view, name), read(view, name + ".smoothed")
    assert raw is not None, "the caller has read the column"
    if smooth is None or len(raw) < FEW:
        return (line(raw, label or name),)
    usual, wide = np.percentile(np.diff(raw.steps), [50, 95])
    if wide > 2 * usual:
        return (line(raw, label or name),)
    before = f"{label}, " if label else ""
    calm = line(smooth, before + "smoothed")
    calm.y[~np.isfinite(raw.values)] = np.nan
    return line(raw, before + "each step", "faint"), calm


def heat_map(array: LabelledArray, title: str, note: str = "", scale: Scale | None = None) -> HeatMap:
    """A column over an axis as a heat-map.

    Args:
        array: Labelled array with values of shape (steps, entries).
        title: What is shown, without its unit.
        note: How to read it; what the column says of itself if empty.
        scale: None: log where the values span decades.

    Returns:
        The heat-map.
    """
    return HeatMap(
        title=named(title, array.column.unit),
        x=array.steps.astype(np.float64),
        rows=tuple(array.labels),
        values=array.values,
        value_label=named(array.column.name, array.column.unit),
        scale=scale_for(array.values) if scale is None else scale,
        note=note or sentence(array.column.about),
    )


def heat_maps(found: Mapping[str, LabelledArray], shown: Mapping[str, tuple[str, str, Scale | None]]) -> list[HeatMap]:
    """Several statistics of the same things, each as a heat-map; those without a single number are named in a note.

    Args:
        found: Columns over an axis, by name.
        shown: Title, note and scale by column.

    Returns:
        The heat-maps.

    Raises:
        NotApplicable: No column has a number.
    """
    empty = [name for name, array in found.items() if np.isnan(array.values).all()]
    panels = [heat_map(array, *shown[name]) for name, array in found.items() if name not in empty]
    if not panels:
        raise NotApplicable(f"{', '.join(empty)} hold no number, only NaN")
    if empty:
        titles = ", ".join(shown[name][0].lower() for name in empty)
        panels[0] = replace(panels[0], note=f"{panels[0].note} Without a value for any layer here: {titles}.".strip())
    return panels


def quantiles(view: RunView, name: str, title: str, note: str, reference: tuple[str, float] | None = None) -> Lines:
    """How a column of norms or ratios spreads over its entries: 90 %, 50 % and 10 % quantiles at each step.

    Args:
        view: The run, which has the column.
        name: The name of a column over an axis.
        title: What is shown.
        note: How to read it.
        reference: Label and height of a dashed line.

    Returns:
        The curves.
    """
    labels = {"q90": "90 % quantile", "median": "median", "q10": "10 % quantile"}
    lines = [line(view[f"{name}.{suffix}"], label) for suffix, label in labels.items()]
    if reference is not None:
        lines.append(level(*reference, like=lines[0]))
    return Lines(title=title, lines=tuple(lines), y_label=named(name, view[name].column.unit), y_scale="log", note=note)


def level(label: str, height: float, like: Line) -> Line:
    """A dashed horizontal line.

    Args:
        label: Its name in the legend.
        height: Its place.
        like: A curve of at least one point that it is to be as long as.

    Returns:
        The line.
    """
    return Line(label=label, x=like.x[[0, -1]], y=np.full(2, height), style="dashed")


def column(view: RunView, name: str, title: str | None = None) -> HeatMap | Lines:
    """Any column as one panel: layers as a heat-map, parameter groups as curves, a scalar as a curve.

    Args:
        view: The run.
        name: A name that the run knows.
        title: Heading; the column's name if None.

    Returns:
        The panel.
    """
    array = view[name]
    axis = array.column.axis
    if axis is not None:
        return (entries if axis.name == "group" else heat_map)(array, title or name)
    return Lines(
        title=title or name,
        lines=smoothed(view, name, ""),
        y_label=named(name, array.column.unit),
        y_scale=scale_for(array.values),
        note=sentence(array.column.about),
    )


def entries(array: LabelledArray, title: str, note: str = "", scale: Scale | None = None) -> HeatMap | Lines:
    """A column over a short axis as one curve per entry, equal ones drawn once; a heat-map where there are many.

    Args:
        array: Labelled array with values of shape (steps, entries).
        title: What is shown, without its unit.
        note: How to read it.
        scale: None: log where the values span decades.

    Returns:
        The panel.
    """
    if array.values.ndim == 1:
        groups: dict[bytes, list[int]] = {b"": [0]}
    else:
        groups = {}
        for i in range(array.values.shape[1]):
            groups.setdefault(array.values[:, i].tobytes(), []).append(i)
    if len(groups) > MOST_LINES:
        return heat_map(array, title, note, scale)
    x = array.steps.astype(np.float64)
    columns = array.values.reshape(len(x), -1).astype(np.float64)
    names = tuple(array.labels) or (array.column.name,)
    lines: list[Line] = []
    for members in groups.values():
        there = ~np.isnan(columns[:, members[0]])  # an entry that was added later has no value before
        label = _several([names[i] for i in members])
        lines.append(Line(label=label, x=x[there], y=columns[there, members[0]]))
    unit = array.column.unit
    return Lines(
        title=title,
        lines=tuple(lines),
        y_label=named(title, unit),
        y_scale=scale_for(columns) if scale is None else scale,
        note=note,
    )


def _several(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, {names[1]} and {len(names) - 2} more"
