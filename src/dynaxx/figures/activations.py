"""What comes out of the activation functions: mean, spread, zeros, saturation and dead units."""

from collections.abc import Sequence

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Panel, Scale
from dynaxx.figures._build import heat_maps
from dynaxx.figures._read import read_some
from dynaxx.runlog import RunView

_SHOWN: dict[str, tuple[str, str, Scale | None]] = {
    "activations.std": ("Standard deviation of activations", "", None),
    "activations.mean": ("Mean of activations", "", "linear"),
    "activations.zeros": (
        "Fraction of activations that are exactly zero",
        "About a half is usual after a ReLU.",
        "linear",
    ),
    "activations.saturated": ("Fraction of saturated activations", "In the flat part of a bounded function.", "linear"),
    "activations.dead": ("Fraction of dead units", "Units that were not active once within the window.", "linear"),
}


class Activations(Figure):
    """Activation statistics by layer."""

    title = "Activations"
    order = 50

    def panels(self, view: RunView) -> Sequence[Panel]:
        """One heat-map per statistic."""
        found = read_some(view, _SHOWN, "no activation was measured: the signal found nothing to look at")
        return heat_maps(found, _SHOWN)
