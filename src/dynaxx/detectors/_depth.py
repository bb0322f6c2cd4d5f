"""Gradients along the depth of a model: root mean square per parameter of each weight layer, in order."""

from typing import NamedTuple

import numpy as np

from dynaxx.core.findings import Log
from dynaxx.detectors._facts import matrices
from dynaxx.detectors._read import rows
from dynaxx.detectors._spans import moving_mean
from dynaxx.errors import NotApplicable

WINDOW = 10
"""Track that a layer's logarithms are averaged over before they are compared, as TheDeepChecker does (2022)."""


class Depth(NamedTuple):
    """Gradients by depth.

    Args:
        steps: Shape (rows,).
        level: log₁₀ of ‖g_l‖/√n_l, a moving mean, of shape (rows, layers), the first layer first; NaN where it is 0.
        labels: The layers.
    """

    steps: np.ndarray
    level: np.ndarray
    labels: tuple[str, ...]

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean level of the first third of the layers, and of the last third, of shape (rows,) each."""
        third = max(1, len(self.labels) // 3)
        return self.level[:, :third].mean(axis=1), self.level[:, -third:].mean(axis=1)


def drop(run: Log, *, first: bool = False) -> float:
    """By how many decades gradients per parameter fall from the last third of the depth to the first.

    Args:
        run: The log.
        first: Of the first step; else the median of the last rows.

    Returns:
        Decades; NaN where depth cannot be spoken of.
    """
    try:
        found = depth(run)
    except NotApplicable:
        return float("nan")
    early, late = found.ends()
    fall = (late - early)[:1] if first else (late - early)[-WINDOW:]
    fall = fall[np.isfinite(fall)]
    return float(np.median(fall)) if len(fall) else float("nan")


def depth(run: Log) -> Depth:
    """Read the gradients of the weight layers.

    Args:
        run: The log.

    Returns:
        Their levels.

    Raises:
        NotApplicable: There are fewer than three such layers, or too few rows.
    """
    norms = rows(run, "grad_norm", least=2 * WINDOW)
    places, numel = matrices(run, norms.labels)
    values = norms.values[:, places]
    moving = (values > 0).any(axis=0)
    places, values, numel = places[moving], values[:, moving], numel[moving]
    if len(places) < 3:
        raise NotApplicable(f"depth needs at least 3 layers with weights and gradients; there are {len(places)}")
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.log10(values) - 0.5 * np.log10(numel)
    return Depth(norms.steps, moving_mean(level, WINDOW), tuple(norms.labels[i] for i in places))
