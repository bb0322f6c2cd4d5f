"""How a mixture of experts spreads its tokens: largest load and entropy of the router."""

from collections.abc import Sequence

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Panel
from dynaxx.figures._build import column
from dynaxx.figures._read import read_some
from dynaxx.runlog import RunView

_TITLES = {"router.load_max": "Load of the busiest expert", "router.entropy": "Entropy of the router"}


class Router(Figure):
    """Load and entropy of the routers."""

    title = "Router"
    order = 65

    def panels(self, view: RunView) -> Sequence[Panel]:
        """One panel per statistic."""
        found = read_some(view, tuple(_TITLES), "the model has no router of a mixture of experts that was seen")
        return [column(view, name, _TITLES[name]) for name in found]
