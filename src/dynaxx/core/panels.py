"""What a figure is made of: panels of numbers, drawn alike by matplotlib and by the report's front end."""

from dataclasses import dataclass
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
        note: How to read it, in one sentence.
    """

    title: str
    lines: tuple[Line, ...]
    x_label: str = "step"
    y_label: str = ""
    y_scale: Scale = "linear"
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """A matrix over steps and the entries of an axis (layers), first entry on top.

    Args:
        title: What is shown, with its unit.
        x: Steps of the columns.
        rows: Names of the rows.
        values: Shape (columns, rows); NaN where nothing was measured.
        value_label: Name and unit of the values.
        scale: "log" for what spans decades; zeros and negatives are then drawn as missing.
        note: How to read it, in one sentence.
    """

    title: str
    x: Float[np.ndarray, " columns"]
    rows: tuple[str, ...]
    values: Float[np.ndarray, "columns rows"]
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


Panel = Lines | HeatMap | Table
