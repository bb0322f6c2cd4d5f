"""The way through parameter space: distance, path length, turning, and a picture of it in two dimensions."""

import itertools
from collections.abc import Sequence

import numpy as np

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Line, Lines, Panel
from dynaxx.figures._build import line, smoothed
from dynaxx.figures._path import Path
from dynaxx.figures._read import named, read_some
from dynaxx.runlog import LabelledArray, RunView

_NAMES = ("trajectory.distance", "trajectory.path_length", "trajectory.cosine", "trajectory.sketch")
_PICTURE_STEPS = 600
"""Sketches that enter the picture: enough for a smooth curve, and a quick decomposition."""
_PIECES = 12


class Trajectory(Figure):
    """Distance, direction and shape of the path of the parameters."""

    title = "Trajectory"
    order = 90

    def panels(self, view: RunView) -> Sequence[Panel]:
        """Distance from the start and path length, cosine to the last direction, principal components of the path."""
        found = read_some(view, _NAMES, "no trajectory was recorded in this run")
        panels: list[Panel] = []
        lengths = {"trajectory.distance": "distance from start", "trajectory.path_length": "path length"}
        lines = tuple(line(found[name], label) for name, label in lengths.items() if name in found)
        if lines:
            unit = next(found[name].column.unit for name in lengths if name in found)
            panels.append(
                Lines(
                    title="Distance from the start and length of the path",
                    lines=lines,
                    y_label=named("length", unit),
                    note="A path much longer than the distance turns or oscillates.",
                )
            )
        if "trajectory.cosine" in found:
            panels.append(
                Lines(
                    title="Cosine between successive directions",
                    lines=smoothed(view, "trajectory.cosine", ""),
                    y_label="cosine",
                    note="1 goes straight on, 0 turns at right angles, negative values bounce back.",
                )
            )
        sketch = found.get("trajectory.sketch")
        if sketch is not None and sketch.values.ndim == 2:
            picture = _picture(sketch)
            panels += [] if picture is None else [picture]
        return panels


def principal_path(sketches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A sequence of vectors in the plane of their first two principal components.

    Args:
        sketches: Shape (points, dimensions), finite, at least 3 points.

    Returns:
        Coordinates of shape (points, 2), the first point at the origin, and the shares of variance, shape (2,).

    Example:
        >>> path, share = principal_path(np.outer(np.arange(5.0), [3.0, 4.0]))
        >>> path[:, 0].round(9).tolist(), share.round(9).tolist()
        ([0.0, 5.0, 10.0, 15.0, 20.0], [1.0, 0.0])
    """
    centred = sketches.astype(np.float64) - sketches.mean(axis=0, dtype=np.float64)
    # The Gram matrix over points is small however long the vectors are.
    variances, vectors = np.linalg.eigh(centred @ centred.T)
    top = np.maximum(variances[::-1][:2], 0.0)
    path = vectors[:, ::-1][:, :2] * np.sqrt(top)
    # The sign of a component is arbitrary: the end is put to the upper right of the start.
    path = path * np.where(path[-1] < path[0], -1.0, 1.0)
    path = path - path[0]
    whole = float(np.square(centred).sum())
    return path, top / whole if whole > 0 else np.zeros(2)


def _picture(sketch: LabelledArray) -> Path | None:
    kept = np.flatnonzero(np.isfinite(sketch.values).all(axis=1))
    if kept.size < 3:
        return None
    kept = kept[np.unique(np.linspace(0, kept.size - 1, min(kept.size, _PICTURE_STEPS)).astype(np.int64))]
    path, share = principal_path(sketch.values[kept])
    cuts = np.unique(np.linspace(0, kept.size - 1, min(_PIECES, kept.size - 1) + 1).astype(np.int64))
    pieces = tuple(
        Line(label=f"steps {sketch.steps[kept[a]]}–{sketch.steps[kept[b]]}", x=path[a : b + 1, 0], y=path[a : b + 1, 1])
        for a, b in itertools.pairwise(cuts)
    )
    return Path(
        title="Path of the parameters in two principal components",
        lines=pieces,
        x_label=f"first component ({share[0]:.0%} of the variance)",
        y_label=f"second component ({share[1]:.0%})",
        note=f"From a random sketch of {sketch.values.shape[1]} numbers per step; the two components explain "
        f"{share.sum():.0%} of the variance. A pure random walk draws an arc too, with 61 % and 15 %.",
    )
