"""A run's figures as JSON-able headers and arrays, which the report and the live dashboard draw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynaxx.core.panels import Field, HeatMap, Line, Lines, Panel, Table
from dynaxx.errors import NotApplicable
from dynaxx.figures._contours import colour_span, thinned
from dynaxx.figures._entries import entries
from dynaxx.figures._path import Path
from dynaxx.figures._pool import BAD, CODES, MISSING, cells, encode, envelope, not_finite, union
from dynaxx.runlog import RunView


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureData:
    """One figure of one run, ready to be sent.

    Args:
        name: The figure's file name.
        title: Its heading.
        panels: One JSON-able header per panel; `kind` is "lines", "path", "heat", "field" or "table", and values that
            are the name of an array stand under keys that end in `_array`.
        arrays: The arrays by name: float64 positions, float32 values, uint16 codes of heat-maps.
        reason: Why there is nothing to show; empty where there are panels.
    """

    name: str
    title: str
    panels: tuple[Mapping[str, Any], ...] = ()
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    reason: str = ""


def data(view: RunView) -> list[FigureData]:
    """Every figure of a run, those that do not apply with their reason.

    Long lines are shipped as envelopes of at most 4000 points, heat-maps as 12-bit codes of at most 1200 columns.

    Args:
        view: A `RunView`.

    Returns:
        The figures in the order of the report.
    """
    figures: list[FigureData] = []
    for name, figure in entries().items():
        try:
            panels = figure.panels(view)
        except NotApplicable as reason:
            figures.append(FigureData(name=name, title=figure.title, reason=str(reason)))
            continue
        figures.append(of_panels(name, figure.title, panels))
    return figures


def of_panels(name: str, title: str, panels: Sequence[Panel]) -> FigureData:
    """Panels as a figure that is ready to be sent.

    Args:
        name: The figure's name.
        title: Its heading.
        panels: What it shows.

    Returns:
        The figure.
    """
    arrays: dict[str, np.ndarray] = {}
    headers = tuple(_header(panel, f"{name}.{i}", arrays) for i, panel in enumerate(panels))
    return FigureData(name=name, title=title, panels=headers, arrays=arrays)


def _header(panel: Panel, key: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    match panel:
        case Lines():
            return _lines(panel, key, arrays)
        case HeatMap():
            return _heat(panel, key, arrays)
        case Field():
            return _field(panel, key, arrays)
        case Table():
            rows = [list(row) for row in panel.rows]
            return {
                "kind": "table", "title": panel.title, "note": panel.note, "header": list(panel.header), "rows": rows,
            }  # fmt: skip


def _lines(panel: Lines, key: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    path = isinstance(panel, Path)
    curves = [_curve(curve, f"{key}.{i}", arrays, whole=path) for i, curve in enumerate(panel.lines)]
    return {
        "kind": "path" if path else "lines",
        "title": panel.title,
        "note": panel.note,
        "x_label": panel.x_label,
        "y_label": panel.y_label,
        "scale": panel.y_scale,
        "x_scale": panel.x_scale,
        "marks": dict(panel.marks),
        "spans": {name: list(ends) for name, ends in panel.spans.items()},
        "lines": curves,
        "bad": [] if path else union(interval for curve in panel.lines for interval in not_finite(curve.x, curve.y)),
    }


def _curve(curve: Line, key: str, arrays: dict[str, np.ndarray], *, whole: bool) -> dict[str, Any]:
    x, y = (curve.x, curve.y) if whole else envelope(curve.x, curve.y)
    x_array, y_array = key + ".x", key + ".y"
    arrays[x_array], arrays[y_array] = x.astype(np.float64), _float32(y)
    return {
        "label": curve.label, "style": curve.style, "x_array": x_array, "y_array": y_array, "points": len(curve.x),
    }  # fmt: skip


def _field(panel: Field, key: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    x, y, values = thinned(panel)
    arrays[key + ".x"], arrays[key + ".y"], arrays[key + ".values"] = x, y, _float32(values)
    return {
        "kind": "field",
        "title": panel.title,
        "note": panel.note,
        "x_label": panel.x_label,
        "y_label": panel.y_label,
        "value_label": panel.value_label,
        "scale": panel.scale,
        "x_array": key + ".x",
        "y_array": key + ".y",
        "values_array": key + ".values",
        "colours": list(colour_span(values, panel.scale)),
        "paths": [_curve(path, f"{key}.{i}", arrays, whole=True) for i, path in enumerate(panel.paths)],
    }


def _heat(panel: HeatMap, key: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    drawn = cells(panel.x, panel.values, panel.scale)
    codes = encode(drawn.values, drawn.span, panel.scale)
    arrays[key + ".x"], arrays[key + ".codes"] = drawn.x, codes
    return {
        "kind": "heat",
        "title": panel.title,
        "note": panel.note,
        "x_label": panel.x_label,
        "value_label": panel.value_label,
        "scale": panel.scale,
        "rows": list(panel.rows),
        "x_array": key + ".x",
        "codes_array": key + ".codes",
        "span": list(drawn.span),
        "colours": list(drawn.colours),
        "codes": CODES,
        "pooled": drawn.pooled,
        "by": drawn.by,
        "empty": bool((codes <= BAD).all()),
        "bad": bool((codes == BAD).any()),
        "missing": bool((codes == MISSING).any()),
    }


def _float32(values: np.ndarray) -> np.ndarray:
    # Losses beyond float32 (a diverging run) stay finite: they are drawn at its largest value.
    limit = np.finfo(np.float32).max
    return np.clip(values, -limit, limit).astype(np.float32)
