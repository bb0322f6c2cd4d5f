"""The page of a map: verdict and plan on top, then every chart."""

from typing import Any

from dynaxx import figures
from dynaxx.core.chart import Chart
from dynaxx.core.panels import Panel, Table
from dynaxx.report._payload import assembled
from dynaxx.report._summary import Fact, duration
from dynaxx.survey.map import Map

TITLES = {
    "proxies": "Search by proxy",
    "lr_range": "Learning-rate range test",
    "sensitivity": "Sensitivity to the learning rate",
    "fleet": "Optimizers compared",
    "gradient_noise": "Gradient noise and batch size",
    "spectrum": "Curvature",
    "slices": "Slices of the loss",
    "flatness": "Flatness",
    "trajectory_map": "Paths of the short trainings",
    "connectivity": "Connectivity of two seeds",
}


def map_payload(made: Map) -> tuple[dict[str, Any], bytes]:
    """What the front end draws of a map.

    Args:
        made: The map.

    Returns:
        The JSON-able part and the compressed arrays, as of a run.
    """
    verdict = figures.of_panels("verdict", "Verdict and plan", (_decisions(made), _terrain(made), *_unknown(made)))
    charts = [
        figures.of_panels(name, TITLES.get(name, name), (_numbers(chart), *chart.panels))
        for name, chart in made.charts.items()
    ]
    missing = [
        figures.FigureData(name=name, title=TITLES.get(name, name), reason=reason)
        for name, reason in made.left_out.items()
    ]
    return assembled([(f"Map of {made.plan.task.name}", _facts(made), [verdict, *charts, *missing])])


def _facts(made: Map) -> list[Fact]:
    plan, terrain = made.plan, made.terrain
    rate = plan.learning_rate
    seconds = sum(chart.cost.seconds for chart in made.charts.values())
    return [
        Fact(
            label="terrain",
            value=terrain.name or "not established",
            detail=f"confidence {terrain.sure}" if terrain.name else "",
            alarm=terrain.name is None,
        ),
        Fact(
            label="learning rate",
            value="the task's own" if rate.peak is None else f"{rate.peak:.3g}",
            detail="" if rate.low is None else f"{rate.low:.3g} to {rate.high:.3g}",
            alarm=rate.peak is None,
        ),
        Fact(label="approach", value=plan.evidence["approach"].partition(":")[0]),
        Fact(
            label="batch",
            value="the task's own" if plan.batch.size is None else str(plan.batch.size),
            detail="" if plan.batch.low is None else f"{plan.batch.low:.3g} to {plan.batch.high:.3g} examples",
        ),
        Fact(label="optimizer", value="the task's own" if plan.optimizer.name == "task" else plan.optimizer.name),
        Fact(label="spent", value=f"{made.spent:.0f} passes", detail=f"of {made.granted:.0f}; {duration(seconds)}"),
    ]


def _decisions(made: Map) -> Table:
    plan = made.plan
    rows = tuple((name.replace("_", " "), text, plan.confidence.get(name, "")) for name, text in plan.evidence.items())
    return Table(title="What is recommended, and why", header=("", "evidence", "confidence"), rows=rows,
                 note=f"Run it: dynaxx train {plan.task.name} --plan {made.folder / 'plan.toml'}")  # fmt: skip


def _terrain(made: Map) -> Table:
    terrain = made.terrain
    ranked = sorted(terrain.scores.items(), key=lambda item: -item[1])
    rows = tuple((name, f"{score:+.2f}") for name, score in ranked)
    missing = f"Not measured: {', '.join(terrain.missing)}." if terrain.missing else ""
    return Table(title="Classes of terrain", header=("class", "score"), rows=rows,
                 note=f"1: every rule that could be read fits; −1: none does. {missing}")  # fmt: skip


def _unknown(made: Map) -> list[Panel]:
    if not made.plan.not_established:
        return []
    rows = tuple(
        (what.replace("_", " "), why) for what, _, why in (x.partition(": ") for x in made.plan.not_established)
    )
    return [Table(title="What was not established", header=("", "why"), rows=rows)]


def _numbers(chart: Chart) -> Table:
    units = any(value.unit != "1" for value in chart.values.values())
    rows = tuple(
        (_words(name), str(value), *([value.unit if value.unit != "1" else ""] if units else []), value.about)
        for name, value in chart.values.items()
    )
    header = ("", "value", *(["unit"] if units else []), "what it is")
    note = " ".join([chart.title + ".", *chart.notes])
    return Table(title="Numbers", header=header, rows=rows, note=note)


def _words(name: str) -> str:
    return name.replace("_", " ").replace(".", ", ")
