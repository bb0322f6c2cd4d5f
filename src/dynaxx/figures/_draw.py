"""Panels drawn by matplotlib's object-oriented interface: no global state, safe in threads and notebooks."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynaxx.core.panels import Field, HeatMap, Lines, Panel, Table
from dynaxx.errors import UnknownName
from dynaxx.figures._build import column
from dynaxx.figures._contours import contours, surface
from dynaxx.figures._entries import entries
from dynaxx.figures._path import Path
from dynaxx.figures._pool import cells, envelope, not_finite, union
from dynaxx.runlog import RunView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#332288", "#56B4E9", "#6B6B6B", "#E69F00")
"""Distinct to colour-blind eyes (Okabe & Ito 2008); yellow, which vanishes on white, is left out."""
BAD_COLOUR = "#D6336C"
"""Values that are not finite: far from every colour of viridis and of the curves."""
SPAN_COLOUR = "#E69F00"
"""Stretches with a finding: amber, which no curve has."""
_SPAN_ROWS = 4
"""Names of stretches stand beneath each other in so many rows."""
MISSING_COLOUR = "#E3E3E3"
PATH_COLOUR = "#D55E00"
"""Paths over a plane: vermilion stands out of every colour of viridis."""
_WIDTH = 9.0
_NOTE_WIDTH = 120
_LEGEND_COLUMNS = 5
_TABLE_ROWS, _TABLE_WIDTH = 30, 180


def draw(view: RunView, name: str) -> "Picture":
    """A figure of a run, or any of its columns, as a matplotlib figure.

    Args:
        view: A `RunView`.
        name: A figure ("gradients") or a column ("grad_norm"): a scalar column is drawn as a curve, a column over an
            axis as a heat-map.

    Returns:
        The figure; `savefig` writes it.

    Raises:
        UnknownName: Neither a figure nor a column has that name.
        NotApplicable: The run holds nothing for this figure.
    """
    figures = entries()
    if name in figures:
        return picture(figures[name].panels(view))
    try:
        return picture([column(view, name)])
    except UnknownName:
        raise UnknownName("figure or column", name, {*figures, *view.columns}) from None


def picture(panels: Sequence[Panel], width: float = _WIDTH, *, surface: bool = False) -> "Picture":
    """Panels one below the other.

    Args:
        panels: What to draw.
        width: Inches.
        surface: Draw functions over a plane in three dimensions.

    Returns:
        The figure.
    """
    # matplotlib costs half a second to import: only drawing pays it.
    from matplotlib.figure import Figure as Picture
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    heights = [_height(panel) for panel in panels]
    figure = Picture(figsize=(width, sum(heights)), layout=ConstrainedLayoutEngine(hspace=0.0, h_pad=0.1))
    grid = figure.add_gridspec(len(panels), 1, height_ratios=heights)
    for i, panel in enumerate(panels):
        solid = surface and isinstance(panel, Field)
        _panel(figure.add_subplot(grid[i], projection="3d" if solid else None), panel, solid=solid)
    return figure


def _height(panel: Panel) -> float:
    match panel:
        case Path():
            return 5.0
        case Lines():
            return 3.4
        case Field():
            return 5.6
        case HeatMap():
            return min(6.5, 1.7 + 0.17 * max(len(panel.rows), 5))
        case Table():
            return 0.85 + 0.2 * (min(len(panel.rows), _TABLE_ROWS) + 1)


def _panel(axes: "Axes", panel: Panel, *, solid: bool = False) -> None:
    if not solid:
        axes.spines[["top", "right"]].set_visible(False)
    match panel:
        case Path():
            _path(axes, panel)
        case Lines():
            _lines(axes, panel)
        case HeatMap():
            _heat(axes, panel)
        case Field():
            _field(axes, panel, solid=solid)
        case Table():
            _table(axes, panel)
    # matplotlib's own wrapping knows nothing of the layout.
    note = textwrap.wrap(_plain(panel.note), _NOTE_WIDTH)
    if isinstance(panel, Table):
        rows, corner, place, side = len(note), (0, 1), (0, 2), "bottom"
    else:
        rows, corner, place, side = _legend_rows(axes), (0, 0), (0, -36), "top"
    axes.set_title(_plain(panel.title), loc="left", fontweight="bold", fontsize=10, pad=6 + 14 * rows)
    if note:
        text = "\n".join(note)
        axes.annotate(text, corner, place, "axes fraction", "offset points", fontsize=8, color="#555555", va=side)


def _plain(text: str) -> str:
    """Text in which a dollar sign is a dollar sign: names of layers and runs are not mathematics."""
    return text.replace("$", r"\$")


def _field(axes: "Axes", panel: Field, *, solid: bool) -> None:
    if solid:
        surface(axes, panel, PATH_COLOUR)
    else:
        handles = contours(axes, panel, MISSING_COLOUR, BAD_COLOUR, PATH_COLOUR)
        if handles:
            _legend(axes, list(handles.values()), list(handles))
    axes.set_xlabel(_plain(panel.x_label))
    axes.set_ylabel(_plain(panel.y_label))


def _legend(axes: "Axes", handles: Sequence[Any], labels: Sequence[str]) -> None:
    # Handles are given: matplotlib leaves curves out whose own label begins with an underscore.
    plain = [_plain(label) for label in labels]
    axes.legend(
        handles, plain, frameon=False, fontsize=8, ncols=min(_LEGEND_COLUMNS, len(labels)), loc="lower left",
        bbox_to_anchor=(0, 1), borderpad=0.1, borderaxespad=0.1, handlelength=1.4,
    )  # fmt: skip


def _legend_rows(axes: "Axes") -> int:
    legend = axes.get_legend()
    return 0 if legend is None else -(-len(legend.get_texts()) // _LEGEND_COLUMNS)


def _lines(axes: "Axes", panel: Lines) -> None:
    solid = 0
    handles: list[Any] = []
    for curve in panel.lines:
        x, y = envelope(curve.x, curve.y)
        if panel.y_scale == "log":
            y = np.where(y > 0, y, np.nan)
        colour = COLOURS[solid % len(COLOURS)]
        match curve.style:
            case "faint":
                drawn = axes.plot(x, y, color=colour, alpha=0.3, linewidth=0.8)
            case "dashed":
                drawn = axes.plot(x, y, color="#777777", linestyle="--", linewidth=1.0)
            case "points":
                drawn = axes.plot(x, y, color=colour, marker="o", markersize=4, linewidth=1.0)
            case "line":
                drawn = axes.plot(x, y, color=colour, linewidth=1.6)
        handles += drawn
        solid += curve.style in ("line", "points")
    bad = union(interval for curve in panel.lines for interval in not_finite(curve.x, curve.y))
    bands = [axes.axvspan(first, last, color=BAD_COLOUR, alpha=0.25, linewidth=1.0) for first, last in bad]
    if panel.y_scale == "log" and any((curve.y > 0).any() for curve in panel.lines):
        axes.set_yscale("log")
    if panel.x_scale == "log" and any((curve.x > 0).any() for curve in panel.lines):
        axes.set_xscale("log")
    for row, (name, ends) in enumerate(panel.spans.items()):
        _span(axes, name, ends, row % _SPAN_ROWS)
    for name, place in panel.marks.items():
        _mark(axes, name, place)
    axes.set_xlabel(_plain(panel.x_label))
    axes.set_ylabel(_plain(panel.y_label))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.margins(x=0.01)
    if len(handles) > 1 or bands:
        labels = [*(curve.label for curve in panel.lines), *(["not finite"] if bands else [])]
        _legend(axes, [*handles, *bands[:1]], labels)


def _mark(axes: "Axes", name: str, place: float) -> None:
    """A vertical line with its name beside it, at the top."""
    axes.axvline(place, color="#555555", linewidth=1.0, linestyle=":")
    axes.annotate(
        _plain(name), (place, 1), (3, -3), ("data", "axes fraction"), "offset points", fontsize=8, color="#555555",
        rotation=90, va="top",
    )  # fmt: skip


def _span(axes: "Axes", name: str, ends: tuple[float, float], row: int) -> None:
    """A shaded stretch with its name at the bottom, rows beneath each other so that names do not meet."""
    axes.axvspan(*ends, color=SPAN_COLOUR, alpha=0.13, linewidth=1.0)
    axes.annotate(
        _plain(name), (ends[0], 0), (3, 3 + 10 * row), ("data", "axes fraction"), "offset points", fontsize=7,
        color="#8A5A00",
    )  # fmt: skip


def _path(axes: "Axes", panel: Path) -> None:
    import matplotlib as mpl

    colours = mpl.colormaps["viridis"](np.linspace(0, 1, len(panel.lines)))
    for curve, colour in zip(panel.lines, colours, strict=True):
        axes.plot(curve.x, curve.y, color=colour, linewidth=1.8, solid_capstyle="round")
    first, last = panel.lines[0], panel.lines[-1]
    start = axes.plot(first.x[0], first.y[0], "o", color=colours[0], markersize=7)
    end = axes.plot(last.x[-1], last.y[-1], "s", color=colours[-1], markersize=7)
    _legend(axes, [*start, *end], [f"start: {first.label}", f"end: {last.label}"])
    axes.set_xlabel(_plain(panel.x_label))
    axes.set_ylabel(_plain(panel.y_label))
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(alpha=0.25, linewidth=0.6)


def _heat(axes: "Axes", panel: HeatMap) -> None:
    from matplotlib.colors import ListedColormap, LogNorm, Normalize

    drawn = cells(panel.x, panel.values, panel.scale)
    edges = np.arange(len(panel.rows) + 1) - 0.5
    (low, high), bad = drawn.colours, np.isinf(drawn.values.T)
    varied = high > low
    norm = LogNorm(low, high) if varied and panel.scale == "log" else Normalize(low, high if varied else low + 1)
    axes.set_facecolor(MISSING_COLOUR)
    good = np.ma.masked_invalid(drawn.values.T)
    mesh = axes.pcolormesh(drawn.x, edges, good, norm=norm, cmap="viridis", rasterized=True)
    keys: dict[str, str] = {}
    if bad.any():
        red = np.ma.masked_where(~bad, bad.astype(float))
        axes.pcolormesh(drawn.x, edges, red, cmap=ListedColormap([BAD_COLOUR]), rasterized=True)
        keys["not finite"] = BAD_COLOUR
    if varied:
        axes.figure.colorbar(mesh, ax=axes, pad=0.01).set_label(_plain(panel.value_label))
    elif good.count():
        keys[f"{low:.4g} everywhere"] = "#440154"
    if keys:
        _legend(axes, [axes.plot([], [], "s", color=colour)[0] for colour in keys.values()], list(keys))
    axes.invert_yaxis()
    every = max(1, -(-len(panel.rows) // 30))
    axes.set_yticks(range(0, len(panel.rows), every), [_plain(_short(r, 32)) for r in panel.rows[::every]], fontsize=7)
    axes.set_xlabel(_plain(panel.x_label))


def _short(name: str, most: int) -> str:
    """A long name by its end, which tells layers apart."""
    return name if len(name) <= most else "…" + name[1 - most :]


def _table(axes: "Axes", panel: Table) -> None:
    axes.set_axis_off()
    width = max(20, _TABLE_WIDTH // len(panel.header))
    rows = [[_plain(_cut(cell, width)) for cell in row] for row in panel.rows[:_TABLE_ROWS]]
    if len(panel.rows) > _TABLE_ROWS:
        rows.append([f"… and {len(panel.rows) - _TABLE_ROWS} more", *([""] * (len(panel.header) - 1))])
    if not rows:
        return
    header = list(panel.header) if any(panel.header) else None
    table = axes.table(rows, colLabels=header, loc="upper left", cellLoc="left", colLoc="left", edges="horizontal")
    table.set_in_layout(False)  # a wide table would squeeze the axes of all other panels
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.auto_set_column_width(list(range(len(panel.header))))
    for cell in table.get_celld().values():
        cell.set_edgecolor("#CCCCCC")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
