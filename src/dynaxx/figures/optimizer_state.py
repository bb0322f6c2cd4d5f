"""What the optimizer keeps: effective step, momentum against spread, epsilon's share, age of preconditioners."""

from collections.abc import Sequence

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Panel, Scale
from dynaxx.figures._build import heat_map
from dynaxx.figures._read import read_some
from dynaxx.runlog import RunView

_TITLES: dict[str, tuple[str, Scale | None]] = {
    "optimizer_state.effective_step": ("Effective step by layer: |update| / |gradient|", None),
    "optimizer_state.momentum_ratio": ("Momentum against second moment, |m| / |√v|", "linear"),
    "optimizer_state.epsilon_dominated": ("Fraction of coordinates with √v below ε", "linear"),
    "optimizer_state.age": ("Age of the preconditioner", "linear"),
}


class OptimizerState(Figure):
    """The optimizer's state by layer."""

    title = "Optimizer state"
    order = 70

    def panels(self, view: RunView) -> Sequence[Panel]:
        """One heat-map per statistic."""
        found = read_some(view, tuple(_TITLES), "the optimizer keeps no state that is measured (plain SGD has none)")
        return [heat_map(array, _TITLES[name][0], scale=_TITLES[name][1]) for name, array in found.items()]
