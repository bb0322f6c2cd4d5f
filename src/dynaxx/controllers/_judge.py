"""Judges acts by their promises, and says which are to be undone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from dynaxx.controllers._past import same
from dynaxx.core.navigation import REMEDIES, Decision, Outcome, Proposal, Situation, kept
from dynaxx.core.records import Action

Plain = dict[str, Any]
PASSING = REMEDIES | {"stop"}
"""Actions that are over when they are done: they are never in force, and cannot be undone."""
PATIENCE = 3
"""An act whose column has no row is given up after so many times its promised steps: what cannot be seen to help is
undone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """An act to be taken back.

    Args:
        name: The action.
        restore: What was in force in its place before, to be put back; None: the action is lifted.
        reason: For the receipt.
    """

    name: str
    restore: Action | None
    reason: str


class Judgement(NamedTuple):
    """What became of acts.

    Args:
        outcomes: Of those that are judged now.
        pending: Those that are not yet, plain data.
        undo: What to take back.
    """

    outcomes: tuple[Outcome, ...]
    pending: list[Plain]
    undo: tuple[Undo, ...]


def pend(pending: Sequence[Mapping[str, Any]], decisions: Sequence[Decision], situation: Situation) -> list[Plain]:
    """Remember the acts that are to be judged.

    Args:
        pending: What `judge` left.
        decisions: What the arbiter decided; those that are taken and promise something are remembered.
        situation: Where the run was then.

    Returns:
        Plain data: the decision, the step that it counts from, and the action that it replaced.
    """
    kept_on = [dict(item) for item in pending]
    for decision in decisions:
        if decision.status != "taken" or decision.proposal.promise is None:
            continue
        action = decision.proposal.action
        before = situation.in_force.get(action.name)
        since = situation.step
        if action.name == "rollback":
            since = target(situation, action)
        replaced = None if before is None else asdict(before)
        kept_on.append({"decision": decision.as_dict(), "since": since, "replaced": replaced})
    return kept_on


def judge(pending: Sequence[Mapping[str, Any]], situation: Situation) -> Judgement:
    """Judge what can be judged.

    An act that no longer holds before its time (replaced by a higher rung, lifted by hand, or lost with the steps that
    a rollback took back) counts as broken and needs no undoing. One behind which something critical begins is broken
    at once. Rungs that answer something critical are never undone: the next one builds on them.

    Args:
        pending: What `pend` returned.
        situation: Where the run is.

    Returns:
        Outcomes, what is still pending, and what to undo. Every promise comes to one outcome.
    """
    outcomes: list[Outcome] = []
    still: list[Plain] = []
    undo: list[Undo] = []
    for item in pending:
        decision, since = Decision.from_dict(item["decision"]), int(item["since"])
        proposal = decision.proposal
        verdict, gone = _verdict(decision, since, situation)
        if verdict is None:
            still.append(dict(item))
            continue
        good, measured = verdict
        lifts = not good and not gone and not _critical(proposal) and proposal.action.name in situation.in_force
        outcomes.append(
            Outcome(
                proposal=proposal,
                step=decision.step,
                judged=situation.step,
                kept=good,
                measured=measured,
                undone=lifts,
            )
        )
        if lifts:
            undo.append(_undo(item, proposal.action, outcomes[-1]))
    return Judgement(tuple(outcomes), still, tuple(undo))


def target(situation: Situation, action: Action) -> int:
    """The step that a rollback leads to.

    Args:
        situation: Where the run was when it was decided.
        action: The rollback.

    Returns:
        The newest healthy checkpoint's step before the one that it names; that step itself where there is none.
    """
    before = int(action.arguments["before"])
    return max((step for step in situation.healthy if step < before), default=before)


def _verdict(decision: Decision, since: int, situation: Situation) -> tuple[tuple[bool, float] | None, bool]:
    """Whether the promise was kept with the figure, None while it is early; and whether the act is gone already."""
    promise, action = decision.proposal.promise, decision.proposal.action
    assert promise is not None
    if situation.step < since:
        return (False, math.nan), True
    if action.name not in PASSING and not _over(action, since, situation.step):
        present = situation.in_force.get(action.name)
        if present is None or not same(present, action):
            return (False, math.nan), True
    verdict = kept(promise, situation.run, since)
    if verdict is None and not _critical(decision.proposal) and _alarmed(situation, since):
        return (False, math.nan), False
    if verdict is None and situation.step >= since + PATIENCE * promise.steps:
        return (False, math.nan), False
    return verdict, False


def _critical(proposal: Proposal) -> bool:
    """Whether it answers something critical."""
    return proposal.finding is not None and proposal.finding.severity == "critical"


def _alarmed(situation: Situation, since: int) -> bool:
    """Whether something critical has begun since."""
    critical = (f for f in situation.findings if f.severity == "critical" and f.name in situation.fresh)
    return any(finding.onset > since for finding in critical)


def _over(action: Action, since: int, step: int) -> bool:
    """Whether its time to live has run out."""
    return action.steps is not None and step >= since + action.steps


def _undo(item: Mapping[str, Any], action: Action, outcome: Outcome) -> Undo:
    promise = outcome.proposal.promise
    assert promise is not None
    bounds = [f"at most {promise.below:.4g}"] if promise.below is not None else []
    bounds += [f"at least {promise.above:.4g}"] if promise.above is not None else []
    seen = f"it is {outcome.measured:.4g}" if math.isfinite(outcome.measured) else "no finite value was seen"
    before = item["replaced"]
    return Undo(
        name=action.name,
        restore=None if before is None else Action(**before),
        reason=f"{promise.column} was to be {' and '.join(bounds)} after {promise.steps} steps; {seen}",
    )
