"""Proposals, decisions and outcomes survive a way through JSON; of a finding what replay needs is kept."""

import json
import math

from dynaxx.core.navigation import Decision, Outcome, Promise, Proposal
from dynaxx.core.records import Action


def test_round_trip(nav):
    action = Action(name="learning_rate", arguments={"factor": 0.5}, steps=20, reason="because")
    found = nav.finding("divergence", ("learning_rate_too_high", 0.8), severity="critical", onset=7, last=9)
    promise = Promise(column="loss", below=1.5, steps=20)
    proposal = Proposal(
        controller="rate_down", action=action, finding=found, cause="learning_rate_too_high", promise=promise, level=3
    )
    decision = Decision(proposal=proposal, status="taken", why="no rule", step=10)
    again = Decision.from_dict(json.loads(json.dumps(decision.as_dict())))
    assert again.as_dict() == decision.as_dict()
    assert (again.proposal.action, again.proposal.promise, again.proposal.level) == (action, promise, 3)
    kept = again.proposal.finding
    assert kept is not None
    assert (kept.name, kept.severity, kept.onset, kept.last) == ("divergence", "critical", 7, 9)
    assert kept.causes == ()


def test_an_outcome_without_a_figure(nav):
    proposal = Proposal(controller="kick", action=Action(name="stop"))
    outcome = Outcome(proposal=proposal, step=1, judged=2, kept=False, measured=math.nan, undone=True)
    words = json.dumps(outcome.as_dict(), allow_nan=False)
    again = Outcome.from_dict(json.loads(words))
    assert math.isnan(again.measured)
    assert again.as_dict() == outcome.as_dict()
    assert again.proposal == proposal
