"""What a figure is made of: panels of numbers, drawn alike by matplotlib and by the report's front end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float

Scale = Literal["linear", "log"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve of a panel.

    Args:
        label: Its name in the legend.
        x: Positions, increasing (steps, in most panels).
        y: Values; NaN where there is none.
        style: "line"; "points" for sparse values; "faint" for the raw values beneath a smoothed line; "dashed" for a
            reference such as a threshold.
    """

    label: str
    x: Float[np.ndarray, " points"]
    y: Float[np.ndarray, " points"]
    style: Literal["line", "points", "faint", "dashed"] = "line"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Curves over a common axis.

    Args:
        title: What is shown, with its unit.
        lines: The curves.
        x_label: Name of the horizontal axis.
        y_label: Name and unit of the vertical axis.
        y_scale: "log" for what spans decades.
        x_scale: Likewise, of the horizontal axis.
        marks: Positions on the horizontal axis to mark, by name: what is suggested, where it diverges.
        spans: Stretches of the horizontal axis to shade, by name: where something was found.
        note: How to read it, in one sentence.
    """

    title: str
    lines: tuple[Line, ...]
    x_label: str = "step"
    y_label: str = ""
    y_scale: Scale = "linear"
    x_scale: Scale = "linear"
    marks: Mapping[str, float] = field(default_factory=dict[str, float])
    spans: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """A matrix over steps (or another number) and the entries of an axis (layers), first entry on top.

    Args:
        title: What is shown, with its unit.
        x: Positions of the columns, increasing.
        rows: Names of the rows.
        values: Shape (columns, rows); NaN where nothing was measured.
        x_label: Name of the horizontal axis.
        value_label: Name and unit of the values.
        scale: "log" for what spans decades; zeros and negatives are then drawn as missing.
        note: How to read it, in one sentence.
    """

    title: str
    x: Float[np.ndarray, " columns"]
    rows: tuple[str, ...]
    values: Float[np.ndarray, "columns rows"]
    x_label: str = "step"
    value_label: str = ""
    scale: Scale = "linear"
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Facts in rows.

    Args:
        title: What is listed.
        header: Names of the columns.
        rows: The cells, as text.
        note: How to read it, in one sentence.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A function over a plane, as contours and as a surface, with paths over it.

    Args:
        title: What is shown, with its unit.
        x: Positions of the columns, increasing.
        y: Positions of the rows, increasing.
        values: Shape (rows, columns); NaN where the function is not finite or was not evaluated.
        paths: Curves in the plane (a trajectory), and single points by name.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
        value_label: Name and unit of the values.
        scale: "log" for what spans decades; zeros and negatives are then drawn as missing.
        note: How to read it, in one sentence.
    """

    title: str
    x: Float[np.ndarray, " columns"]
    y: Float[np.ndarray, " rows"]
    values: Float[np.ndarray, "rows columns"]
    paths: tuple[Line, ...] = ()
    x_label: str = ""
    y_label: str = ""
    value_label: str = ""
    scale: Scale = "linear"
    note: str = ""


Panel = Lines | HeatMap | Field | Table
