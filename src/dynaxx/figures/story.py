"""What happened, what was tried and what it did: the loss with findings and acts over it, and the account in words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Line, Lines, Panel, Table
from dynaxx.errors import NotApplicable
from dynaxx.figures._build import line, smoothed
from dynaxx.figures._read import named, scale_for
from dynaxx.runlog import RunView

_KINDS = ("finding", "check", "decision", "receipt", "trial", "rolled_back", "outcome", "blend", "update_left_out")
_MARKS = 8
"""Acts that are marked on the curve; of more than these the last ones."""
_FEW = 3
"""Things of a list that an account names: the line is read at a glance, the log holds them all."""
_SPANS = 8


class Story(Figure):
    """The story page: findings, acts and their outcomes."""

    title = "Story"
    order = 5

    def panels(self, view: RunView) -> Sequence[Panel]:
        """The loss under what was found and done, and the account."""
        events = [event for event in view.events() if event.get("kind") in _KINDS]
        told = [row for row in map(_row, events) if row is not None]
        if not any(event["kind"] != "receipt" for event in events) or not told:
            raise NotApplicable('no detector found anything while it trained, or navigate="off" was given')
        table = Table(
            title="What happened, what was tried, what it did",
            header=("step", "", "what", "why"),
            rows=tuple(_merged(told)),
        )
        picture = _picture(view, events)
        return [table] if picture is None else [picture, table]


def _picture(view: RunView, events: Sequence[Mapping[str, Any]]) -> Lines | None:
    if "loss" not in view.columns:
        return None
    loss = view["loss"]
    lines: tuple[Line, ...] = smoothed(view, "loss", "training")
    left = view.excursions("loss")
    for excursion in left:
        lines += (
            Line(
                label=f"left behind (attempt {excursion.attempt})",
                x=excursion.steps.astype(np.float64),
                y=excursion.values.astype(np.float64),
            ),
        )
    if "val_loss" in view.columns:
        lines += (line(view["val_loss"], "validation", "points"),)
    return Lines(
        title="Loss, findings and acts",
        lines=lines,
        y_label=named("loss", loss.column.unit),
        y_scale=scale_for(loss.values, *(excursion.values for excursion in left)),
        marks=dict(_acts(events)[-_MARKS:]),
        spans=_spans(events, int(loss.steps[-1]) if len(loss.steps) else 0),
        note="Shaded: where a detector raised an alarm. Dotted: what was done.",
    )


def _acts(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    found: dict[str, float] = {}
    for event in events:
        proposal = _part(event, "proposal")
        if event["kind"] != "decision" or event.get("status") != "taken" or _checks(proposal):
            continue
        words = _short(_part(proposal, "action"))
        name = words if words not in found else f"{words} (step {event['step']})"
        found[name] = float(event["step"])
    return list(found.items())


def _spans(events: Sequence[Mapping[str, Any]], end: int) -> dict[str, tuple[float, float]]:
    """The stretches of each alarm as the latest event about it knew them; one that was never over lasts to the end."""
    latest: dict[str, Mapping[str, Any]] = {}
    over: dict[str, bool] = {}
    for event in events:
        if event["kind"] == "finding":
            name = str(_part(event, "finding").get("name"))
            latest[name], over[name] = _part(event, "finding"), event.get("state") == "closed"
        elif event["kind"] == "rolled_back":
            over = dict.fromkeys(over, True)  # what stood, stood on the course that was left behind
    found: dict[str, tuple[float, float]] = {}
    for name, finding in latest.items():
        if finding.get("severity") != "note":
            spans = [(float(first), float(last)) for first, last in finding.get("spans", ())[-2:]]
            if spans and not over[name]:
                spans[-1] = (spans[-1][0], max(spans[-1][1], float(end)))
            for place, span in enumerate(spans):
                found[name.replace("_", " ") + (" again" if place else "")] = span
    return dict(list(found.items())[:_SPANS])


def _row(event: Mapping[str, Any]) -> tuple[str, str, str, str] | None:
    """One line of the account; None: nothing to tell."""
    made = _WORDS[event["kind"]](event)
    return None if made is None else (f"{event.get('step', 0):,}", *made)


def _merged(rows: Sequence[tuple[str, str, str, str]]) -> list[tuple[str, str, str, str]]:
    """Lines that repeat the one before are told once."""
    kept: list[tuple[str, str, str, str]] = []
    for row in rows:
        if not kept or row[1:] != kept[-1][1:]:
            kept.append(row)
    return kept


def _finding(event: Mapping[str, Any]) -> tuple[str, str, str] | None:
    finding, state = _part(event, "finding"), event.get("state")
    if finding.get("severity") == "note" or state == "changed":
        return None
    if state == "closed":
        spans = finding.get("spans", ())
        stretch = f"it was seen in steps {spans[-1][0]} to {spans[-1][1]}" if spans else ""
        return "over", f"{finding.get('code')} {_name(finding)}", stretch
    causes = finding.get("causes", ())
    why = f"{causes[0]['name'].replace('_', ' ')} ({causes[0]['confidence']:.0%})" if causes else ""
    evidence = finding.get("evidence", ())
    seen = evidence[0]["text"] if evidence else ""
    return "found", f"{finding.get('code')} {finding.get('title')}", "; ".join(filter(None, (why, seen)))


def _check(event: Mapping[str, Any]) -> tuple[str, str, str]:
    values = event.get("values", {})
    said = {key: value for key, value in values.items() if value not in (None, "", [], {})}
    shown = ", ".join(f"{key.replace('_', ' ')} {_figure(value)}" for key, value in said.items())
    return (
        "checked",
        str(event.get("name", "")).replace("_", " "),
        shown or ("nothing" if values else f"it could not speak: {event.get('not_applicable', '')}"),
    )


def _decision(event: Mapping[str, Any]) -> tuple[str, str, str] | None:
    proposal = _part(event, "proposal")
    status = event.get("status")
    if status == "refused" or _checks(proposal):
        return None
    cause = str(proposal.get("cause", "")).replace("_", " ")
    reason = str(_part(proposal, "action").get("reason", ""))
    return ("done" if status == "taken" else "advised"), _act(proposal), reason or cause


def _receipt(event: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The end of an act; its beginning is told by the decision."""
    receipt = _part(event, "receipt")
    if receipt.get("status") != "ended":
        return None
    return "ended", str(_part(receipt, "action").get("name", "")).replace("_", " "), str(receipt.get("detail", ""))


def _trial(event: Mapping[str, Any]) -> tuple[str, str, str]:
    arms: Mapping[str, Mapping[str, Any]] = _part(event, "arms")
    losses = ", ".join(f"{name} {_figure(arm['loss'])} (p = {arm['p']:.2g})" for name, arm in arms.items())
    won = f"{event.get('winner')} won a trial of {event.get('steps')} steps on the same batches"
    return "tried", won, f"loss on {event.get('held')} others: {losses}; {event.get('reason', '')}"


def _blend(event: Mapping[str, Any]) -> tuple[str, str, str]:
    if "file" not in event:
        return "not blended", "the checkpoints of the last stretch", str(event.get("why", ""))
    losses = f"loss {_figure(event['blend'])}, of the best part {_figure(event['best_part'])}, on examples that chose "
    return "blended", f"{event['parts']} checkpoints: {event['verdict']}", f"{losses}neither; {event['file']}"


def _rolled_back(event: Mapping[str, Any]) -> tuple[str, str, str]:
    data = f"{event.get('batches_passed')} batches passed over" if event.get("batches_passed") else "data taken again"
    then = ", ".join(_words(_part({"action": each}, "action")) for each in event.get("then", ()))
    what = f"from step {event.get('came_from')} to the checkpoint of step {event.get('step')}"
    return "went back", what, "; then ".join(filter(None, (data, then)))


def _outcome(event: Mapping[str, Any]) -> tuple[str, str, str]:
    proposal = _part(event, "proposal")
    promise = _part(proposal, "promise")
    bound = f"below {_figure(promise['below'])}" if promise.get("below") is not None else ""
    bound += f"above {_figure(promise['above'])}" if promise.get("above") is not None else ""
    figure = f"{promise.get('column', '')} {_figure(event.get('measured'))}, promised {bound}"
    result = "it helped" if event.get("kept") else "it did not help" + (", undone" if event.get("undone") else "")
    return result, _act(proposal), figure


def _left_out(event: Mapping[str, Any]) -> tuple[str, str, str]:
    return "left out", "the update after this step", str(event.get("why", ""))


_WORDS = {
    "finding": _finding,
    "check": _check,
    "decision": _decision,
    "receipt": _receipt,
    "trial": _trial,
    "rolled_back": _rolled_back,
    "outcome": _outcome,
    "blend": _blend,
    "update_left_out": _left_out,
}


def _act(proposal: Mapping[str, Any]) -> str:
    return _words(_part(proposal, "action"))


def _words(action: Mapping[str, Any]) -> str:
    """An action in a few words; what follows a rollback is told by its own line."""
    given = {key: value for key, value in _part(action, "arguments").items() if key != "then"}
    if action.get("name") == "rollback":
        data = "passing over the data since" if given.get("pass_data") else "taking the data again"
        return f"rollback to before step {given.get('before')}, {data}"
    if action.get("name") == "trial":
        return f"trial of {', '.join(_part(given, 'arms'))}, {given.get('steps')} steps each"
    arguments = ", ".join(f"{key.replace('_', ' ')} {_figure(value)}" for key, value in given.items())
    steps = f" for {action['steps']} steps" if action.get("steps") else ""
    return f"{str(action.get('name', '?')).replace('_', ' ')} {arguments}".strip() + steps


def _short(action: Mapping[str, Any]) -> str:
    """An action's name, and its factor where it has one: what fits beside a mark."""
    factor = _part(action, "arguments").get("factor")
    return str(action.get("name", "?")).replace("_", " ") + ("" if factor is None else f" × {_figure(float(factor))}")


def _checks(proposal: Mapping[str, Any]) -> bool:
    """Whether it only looks: what was seen is told where it was seen."""
    return _part(proposal, "action").get("name") == "check"


def _name(finding: Mapping[str, Any]) -> str:
    return str(finding.get("name", "")).replace("_", " ")


def _figure(value: Any) -> str:
    """A number, or the first few of many things."""
    if isinstance(value, list | dict):
        few = " ".join(_figure(each) for each in list(value)[:_FEW])
        return f"({few} …)" if len(value) > _FEW else f"({few})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _part(event: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = event.get(name)
    return part if isinstance(part, Mapping) else {}
