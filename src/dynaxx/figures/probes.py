"""What probes found at the run's checkpoints: spectra, flatness, critical points, the tangent kernel."""

import json
from collections.abc import Sequence
from dataclasses import replace

from dynaxx.core.chart import Chart
from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Panel, Table
from dynaxx.errors import NotApplicable
from dynaxx.runlog import RunView


class Probes(Figure):
    """The charts that `dynaxx probe … RUN` kept in the run's folder, the latest step of each probe."""

    title = "Probes of the landscape"
    order = 95

    def panels(self, view: RunView) -> Sequence[Panel]:
        """Headline numbers and panels of each chart."""
        latest = {path.stem.partition("-")[2]: path for path in sorted((view.folder / "charts").glob("*.json"))}
        if not latest:
            raise NotApplicable("no probe was run: dynaxx probe spectrum RUN.")
        panels: list[Panel] = []
        for name, path in sorted(latest.items()):
            chart = Chart.from_dict(json.loads(path.read_text()))
            step = int(path.stem.partition("-")[0])
            panels.append(_numbers(chart, f"{name} at step {step}"))
            panels += [replace(panel, title=f"{name}: {panel.title}") for panel in chart.panels]
        return panels


def _numbers(chart: Chart, title: str) -> Table:
    rows = tuple(
        (name.replace("_", " "), str(value), "" if value.unit == "1" else value.unit, value.about)
        for name, value in chart.values.items()
    )
    note = " ".join([chart.title + ".", *chart.notes])
    return Table(title=title, header=("", "value", "unit", "what it is"), rows=rows, note=note)
