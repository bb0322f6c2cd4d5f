"""What happened beside training: warnings, changes that were made and why, updates left out, resumed attempts."""

from collections.abc import Mapping, Sequence
from typing import Any

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Panel, Table
from dynaxx.errors import NotApplicable
from dynaxx.runlog import RunView

_ELSEWHERE = frozenset({"self_test", "calibration", "checkpoint"})
"""Kinds of events that are shown by other figures, or too regular to be news."""
_COMMON = frozenset({"kind", "step", "time", "attempt", "overhead"})
_MANY = 20
"""Events of a kind beyond which one row stands for all of them."""


class History(Figure):
    """The run's events, in order."""

    title = "What happened"
    order = 105

    def panels(self, view: RunView) -> Sequence[Panel]:
        """One row per event; a kind that comes often has one row for all."""
        events = [event for event in view.events() if event.get("kind") not in _ELSEWHERE and _news(event)]
        if not events:
            raise NotApplicable("no warning, no change and no resumption was logged")
        kinds: dict[str, list[dict[str, Any]]] = {}
        for event in events:
            kinds.setdefault(str(event.get("kind")), []).append(event)
        rows: dict[int, tuple[str, ...]] = {}
        for kind, alike in kinds.items():
            if len(alike) > _MANY:
                span = f"{alike[0].get('step')}–{alike[-1].get('step')}"
                rows[id(alike[0])] = (span, _words(kind), f"{len(alike)} times; first: {_detail(alike[0])}")
            else:
                rows |= {id(e): (str(e.get("step", "")), _words(kind), _detail(e)) for e in alike}
        ordered = tuple(rows[id(event)] for event in events if id(event) in rows)
        return [Table(title="Events", header=("step", "what", ""), rows=ordered)]


def _news(event: Mapping[str, Any]) -> bool:
    """A run that ended as it should is none."""
    return event.get("kind") != "run_end" or event.get("status") != "finished" or bool(event.get("refused"))


def _words(kind: str) -> str:
    return "change" if kind == "receipt" else kind.replace("_", " ")


def _detail(event: Mapping[str, Any]) -> str:
    receipt = event.get("receipt")
    if isinstance(receipt, Mapping):
        action = receipt.get("action")
        action = action if isinstance(action, Mapping) else {}
        what = " ".join([str(action.get("name", "?")), _fields(action.get("arguments"))]).strip()
        return f"{what} {receipt.get('status', '')}: {receipt.get('detail') or action.get('reason', '')}"
    return _fields({key: value for key, value in event.items() if key not in _COMMON})


def _fields(fields: Any) -> str:
    if not isinstance(fields, Mapping):
        return ""
    if list(fields) == ["message"]:
        return str(fields["message"])
    return ", ".join(f"{key} {value}" for key, value in fields.items() if value not in (None, "", [], {}))
