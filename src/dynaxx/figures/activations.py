"""What comes out of the activation functions: mean, spread, zeros, saturation and dead units."""

from collections.abc import Sequence

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Panel, Scale
from dynaxx.figures._build import heat_map
from dynaxx.figures._read import read_some
from dynaxx.runlog import RunView

_TITLES = {
    "activations.std": ("Standard deviation of activations", ""),
    "activations.mean": ("Mean of activations", ""),
    "activations.zeros": ("Fraction of activations that are exactly zero", "About a half is usual after a ReLU."),
    "activations.saturated": ("Fraction of saturated activations", "In the flat part of their function."),
    "activations.dead": ("Fraction of dead units", "Units that were not active once within the window."),
}
_SCALES: dict[str, Scale | None] = {"activations.std": None}
"""None: as the values are; the others are fractions, or have a sign."""


class Activations(Figure):
    """Activation statistics by layer."""

    title = "Activations"
    order = 50

    def panels(self, view: RunView) -> Sequence[Panel]:
        """One heat-map per statistic."""
        found = read_some(view, tuple(_TITLES), "no activation was measured: the signal found nothing to look at")
        return [heat_map(array, *_TITLES[name], _SCALES.get(name, "linear")) for name, array in found.items()]
