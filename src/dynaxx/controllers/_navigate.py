"""One turn of the navigator: judge what was done, ask every controller, choose. Pure, so that a log can be replayed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from dynaxx import catalog
from dynaxx.controllers._arbiter import arbitrate, start
from dynaxx.controllers._judge import Undo, judge, pend
from dynaxx.core.navigation import Controller, Decision, Mode, Outcome, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]


class Turn(NamedTuple):
    """What one turn comes to.

    Args:
        state: The next state, plain data for the checkpoint.
        outcomes: Acts that were judged, for the log.
        undo: What to take back first.
        decisions: In order; those that are "taken" are to be carried out after the undoing, all are for the log.
        failed: Controller → its error, where it failed just now; it is left out from here on.
    """

    state: Plain
    outcomes: tuple[Outcome, ...]
    undo: tuple[Undo, ...]
    decisions: tuple[Decision, ...]
    failed: Mapping[str, str]


def begin(only: Sequence[str] | None = None) -> Plain:
    """The navigator before its first turn.

    Args:
        only: Names of controllers; None: all.

    Returns:
        Plain data: the state of every controller and of the arbiter, acts that are to be judged, what was done.

    Raises:
        UnknownName: There is no such controller.
    """
    names = catalog.names("controllers") if only is None else only
    return {
        "controllers": {name: _controller(name).init() for name in names},
        "arbiter": start(),
        "pending": [],
        "decisions": [],
        "outcomes": [],
    }


def navigate(state: Mapping[str, Any], situation: Situation, mode: Mode) -> Turn:
    """Take one turn.

    The state is to be kept through a rollback, not restored from the checkpoint: else what failed would be tried again.

    Args:
        state: What the last turn returned, or `begin()`.
        situation: Where the run is; its decisions and outcomes are replaced by those of the state, and what is
            undone is taken out of what is in force.
        mode: In "off" nothing happens.

    Returns:
        The turn.
    """
    if mode == "off":
        return Turn(dict(state), (), (), (), {})
    verdict = judge(state["pending"], situation)
    outcomes = [*state["outcomes"], *(outcome.as_dict() for outcome in verdict.outcomes)]
    situation = replace(
        situation,
        in_force=_after(situation.in_force, verdict.undo),
        decisions=tuple(Decision.from_dict(item) for item in state["decisions"]),
        outcomes=tuple(Outcome.from_dict(item) for item in outcomes),
    )
    controllers, proposals, failed = _ask(state["controllers"], situation)
    arbiter, decisions = arbitrate(state["arbiter"], proposals, situation, mode)
    taken = [decision.as_dict() for decision in decisions if decision.status == "taken"]
    following = {
        "controllers": controllers,
        "arbiter": arbiter,
        "pending": pend(verdict.pending, decisions, situation),
        "decisions": [*state["decisions"], *taken],
        "outcomes": outcomes,
    }
    return Turn(following, verdict.outcomes, verdict.undo, tuple(decisions), failed)


def _ask(states: Mapping[str, Any], situation: Situation) -> tuple[Plain, list[Proposal], dict[str, str]]:
    """Every controller's next state and proposals; one that fails costs its advice, never the training."""
    following: Plain = {}
    proposals: list[Proposal] = []
    failed: dict[str, str] = {}
    for name, state in states.items():
        if state is None:
            following[name] = None
            continue
        try:
            following[name], asked = _controller(name).decide(state, situation)
        except Exception as error:  # a defect of one policy must not end hours of training
            following[name], asked = None, ()
            failed[name] = f"{type(error).__name__}: {error}"
        proposals.extend(asked)
    return following, proposals, failed


def _after(in_force: Mapping[str, Action], undo: Sequence[Undo]) -> dict[str, Action]:
    """What is in force once some acts are taken back."""
    standing = dict(in_force)
    for item in undo:
        if item.restore is None:
            standing.pop(item.name, None)
        else:
            standing[item.name] = item.restore
    return standing


@cache
def _controller(name: str) -> Controller[Any]:
    return catalog.get("controllers", name)()
