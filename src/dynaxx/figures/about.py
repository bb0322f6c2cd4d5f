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
        facts = [("model", f"{model.get('class', '?')}, {model.get('numel', 0):,} parameters")] if model else []
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


def _flat(key: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [row for k, v in value.items() for row in _flat(f"{key}: {k}", v)]
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return [] if value in (None, "") else [(key, str(value))]


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
