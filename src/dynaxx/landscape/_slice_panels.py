"""Slices as headline numbers and pictures: curves of lines, contours of planes, a table over several."""

import math
from collections.abc import Sequence

import numpy as np

from dynaxx.core.chart import Estimate
from dynaxx.core.panels import Field, Line, Lines, Panel, Table
from dynaxx.figures._read import scale_for
from dynaxx.landscape._slice import Found, Slice

FINER = 2
"""A refined plane is drawn on a grid so many times finer than it is measured on: what refinement found is then seen."""


def summary(found: Sequence[Found]) -> Found:
    """Headline numbers: those of the slice, or the mean over several.

    Args:
        found: Of each slice.

    Returns:
        Name → number; of several, with the standard error of their mean, which is their spread over √count.
    """
    if len(found) == 1:
        return found[0]
    means: dict[str, Estimate] = {}
    for name, first in found[0].items():
        values = np.array([each[name].value for each in found])
        if name == "loss":
            means[name] = first
            continue
        good = values[np.isfinite(values)]
        error = float(good.std(ddof=1) / math.sqrt(len(good))) if len(good) > 1 else None
        about = f"{first.about}; mean over {len(good)} slices"
        means[name] = Estimate(value=float(good.mean()) if len(good) else math.nan, error=error, about=about)
    return means


def panels(
    slices: Sequence[Slice], found: Sequence[Found], grids: Sequence[tuple[np.ndarray, ...]]
) -> tuple[Panel, ...]:
    """How slices are drawn.

    Args:
        slices: Their losses.
        found: Their numbers.
        grids: Positions along the axes of each.

    Returns:
        One panel for all lines, or one for each plane; and a table where there are several.
    """
    if len(grids[0]) == 1:
        drawn: list[Panel] = [_lines(slices, [grid[0] for grid in grids])]
    else:
        drawn = [_plane(each, grid, i, len(slices)) for i, (each, grid) in enumerate(zip(slices, grids, strict=True))]
    return (*drawn, _table(found)) if len(slices) > 1 else tuple(drawn)


def _lines(slices: Sequence[Slice], grids: Sequence[np.ndarray]) -> Lines:
    values = [each.losses(grid[:, None]) for each, grid in zip(slices, grids, strict=True)]
    first = slices[0]
    labels = [each.axes.labels[0] if len(slices) == 1 else f"{each.axes.labels[0]}, line {i + 1}"
              for i, each in enumerate(slices)]  # fmt: skip
    curves = [Line(label=label, x=x, y=y) for label, x, y in zip(labels, grids, values, strict=True)]
    if len(slices) == 1 and first.slopes is not None and first.forms is not None:
        curves.append(_quadratic(first, grids[0], values[0]))
    return Lines(
        title="Loss along a line" if len(slices) == 1 else "Loss along lines",
        lines=tuple(curves),
        x_label=f"α, in units of the direction (of length {math.sqrt(first.gram[0, 0]):.3g})",
        y_label="loss",
        y_scale=scale_for(*values),
        marks={"here": 0.0} | ({"other model": 1.0} if first.axes.buffers is not None else {}),
        note=first.axes.note,
    )


def _quadratic(each: Slice, at: np.ndarray, values: np.ndarray) -> Line:
    """The quadratic model at the weights, as far as it stays in the picture."""
    assert each.slopes is not None
    assert each.forms is not None
    model = each.centre + each.slopes[0] * at + each.forms[0, 0] * at**2 / 2
    low, high = np.nanmin(values), np.nanmax(values)
    kept = (model <= high + 0.05 * (high - low)) & (model >= low - 0.2 * (high - low))
    return Line(label="quadratic model", x=at[kept], y=model[kept], style="dashed")


def _plane(each: Slice, grid: tuple[np.ndarray, ...], index: int, count: int) -> Field:
    if each.tree is not None:
        grid = tuple(np.linspace(axis[0], axis[-1], FINER * (len(axis) - 1) + 1) for axis in grid)
    x, y = grid
    values = each.surface(x, y)
    paths = [_point("here", 0.0, 0.0)]
    if each.axes.buffers is not None:
        paths.append(_point("other model", 1.0, 0.0))
    if each.axes.path is not None:
        first, last = each.axes.steps[0], each.axes.steps[-1]
        path = each.axes.path
        paths.insert(0, Line(label=f"checkpoints, steps {first}–{last}", x=path[:, 0], y=path[:, 1]))
    how = f"{each.tree.count} losses, refined where needed." if each.tree is not None else f"{values.size} losses."
    return Field(
        title="Loss over a plane" if count == 1 else f"Loss over plane {index + 1}",
        x=x,
        y=y,
        values=values,
        paths=tuple(paths),
        x_label=f"α · {each.axes.labels[0]}",
        y_label=f"β · {each.axes.labels[1]}",
        value_label="loss",
        scale=each.scale or scale_for(values),
        note=f"{how} {each.axes.note}".strip(),
    )


def _point(label: str, x: float, y: float) -> Line:
    return Line(label=label, x=np.array([x]), y=np.array([y]), style="points")


def _table(found: Sequence[Found]) -> Table:
    names = [name for name in found[0] if name != "loss"]
    rows = tuple((name, *(f"{each[name].value:.4g}" for each in found)) for name in names)
    return Table(title="Slice by slice", header=("", *(str(i + 1) for i in range(len(found)))), rows=rows)
