"""What was run: command, model, layers, software, attempts, and what went wrong with the log."""

from collections.abc import Mapping, Sequence
from typing import Any

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Panel, Table
from dynaxx.runlog import Attempt, RunView

_APART = ("model", "layout", "format")
"""Entries of the manifest that have a table of their own or are too long for one."""


class About(Figure):
    """The run's manifest."""

    title = "About this run"
    order = 120

    def panels(self, view: RunView) -> Sequence[Panel]:
        """Facts, problems and notes of the log, attempts, layers."""
        manifest = view.manifest
        model = manifest.get("model") or {}
        facts = [("model", _model(model))] if model else []
        facts += [row for key, value in manifest.items() if key not in _APART for row in _flat(key, value)]
        panels: list[Panel] = [Table(title="Run", header=("", ""), rows=tuple(facts))]
        for title, texts in (("Problems", view.problems), ("Notes", view.notes)):
            if texts:
                panels.append(Table(title=title, header=("",), rows=tuple((str(t),) for t in texts)))
        if view.attempts:
            panels.append(_attempts(view.attempts))
        layers = model.get("layers") or ()
        if layers:
            panels.append(_layers(layers))
        return panels


def _model(model: Mapping[str, Any]) -> str:
    where = [str(model[key]) for key in ("dtype", "device") if key in model]
    return ", ".join([str(model.get("class", "?")), f"{model.get('numel', 0):,} parameters", *where])


def _flat(key: str, value: Any) -> list[tuple[str, str]]:
    """A fact as rows: one for each entry of a mapping, however deep; lists stay together."""
    if isinstance(value, Mapping):
        return [row for k, v in value.items() for row in _flat(f"{key}: {k}", v)]
    if isinstance(value, list | tuple):
        if any(isinstance(item, Mapping) for item in value):
            return [(f"{key} {i}", _inline(item)) for i, item in enumerate(value)]
        value = " ".join(map(str, value))
    return [] if value in (None, "") else [(key, str(value))]


def _inline(item: Any) -> str:
    return (
        ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in item.items())
        if isinstance(item, Mapping)
        else str(item)
    )


def _attempts(attempts: Sequence[Attempt]) -> Table:
    return Table(
        title="Attempts",
        header=("attempt", "started", "from step", "ended", "status", "rows lost"),
        rows=tuple(
            (str(a.n), a.started, str(a.start_step), a.ended or "", a.status or "running or killed", str(a.lost))
            for a in attempts
        ),
        note="Each process that trained this run is one attempt.",
    )


def _layers(layers: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        title="Layers",
        header=("layer", "kind", "parameters", "trainable"),
        rows=tuple(
            (str(la.get("name", "?")), str(la.get("kind", "")), *(f"{la.get(k, 0):,}" for k in ("numel", "trainable")))
            for la in layers
        ),
    )
