"""What the optimizer keeps: effective step, momentum against spread, epsilon's share, age of preconditioners."""

from collections.abc import Sequence

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Panel, Scale
from dynaxx.figures._build import heat_maps
from dynaxx.figures._read import read_some
from dynaxx.runlog import RunView

_SHOWN: dict[str, tuple[str, str, Scale | None]] = {
    "optimizer_state.effective_step": ("Effective step by layer: |update| / |gradient|", "", None),
    "optimizer_state.momentum_ratio": (
        "Momentum against second moment, |m| / |√v|",
        "1 for a steady gradient, near 0 for pure noise.",
        "linear",
    ),
    "optimizer_state.epsilon_dominated": (
        "Fraction of coordinates with √v below ε",
        "There the step is no longer normalised.",
        "linear",
    ),
    "optimizer_state.age": ("Age of the preconditioner", "", "linear"),
}


class OptimizerState(Figure):
    """The optimizer's state by layer."""

    title = "Optimizer state"
    order = 70

    def panels(self, view: RunView) -> Sequence[Panel]:
        """One heat-map per statistic."""
        found = read_some(view, _SHOWN, "the optimizer keeps no state that is measured (plain SGD has none)")
        return heat_maps(found, _SHOWN)
