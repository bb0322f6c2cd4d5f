"""Promises come to one outcome each, and broken ones are undone to what was in force before."""

import json

import numpy as np

from dynaxx.controllers import judge, pend
from dynaxx.core.navigation import Decision, Promise, Proposal
from dynaxx.core.records import Action
from dynaxx.runlog import Table

PROMISE = Promise(column="loss", below=1.0, steps=20)


def cut(
    factor=0.5,
    *,
    steps=None,
    name="learning_rate",
    arguments=None,
    promise=PROMISE,
    found=None,
):
    action = Action(name=name, arguments={"factor": factor} if arguments is None else arguments, steps=steps)
    proposal = Proposal(controller="rate_down", action=action, finding=found, promise=promise, level=3)
    return Decision(proposal=proposal, status="taken", why="", step=100)


def log(after, steps=200):
    at = np.arange(1, steps + 1)
    return Table({"loss": (at, np.where(at <= 100, 2.0, after))})


def pending(nav, decision, **known):
    found = pend([], [decision], nav.situation(100, **known))
    assert json.loads(json.dumps(found)) == found
    return found


def test_kept_and_broken(nav):
    decision = cut()
    force = {"learning_rate": decision.proposal.action}
    items = pending(nav, decision)
    early = judge(items, nav.situation(119, run=log(0.5, 119), in_force=force))
    assert (early.outcomes, early.undo) == ((), ())
    assert early.pending == items
    good = judge(items, nav.situation(120, run=log(0.5, 120), in_force=force))
    assert [(o.kept, o.measured, o.undone, o.step, o.judged) for o in good.outcomes] == [(True, 0.5, False, 100, 120)]
    assert (good.pending, good.undo) == ([], ())
    bad = judge(items, nav.situation(130, run=log(1.5, 130), in_force=force))
    assert [(o.kept, o.undone) for o in bad.outcomes] == [(False, True)]
    assert [(u.name, u.restore) for u in bad.undo] == [("learning_rate", None)]
    assert bad.undo[0].reason == "loss was to be at most 1 after 20 steps; it is 1.5"


def test_undoing_puts_back_what_was_there(nav):
    before = Action(name="learning_rate", arguments={"factor": 3.0}, reason="raised")
    decision = cut(9.0)
    items = pending(nav, decision, in_force={"learning_rate": before})
    found = judge(items, nav.situation(120, run=log(1.5, 120), in_force={"learning_rate": decision.proposal.action}))
    assert found.undo[0].restore == before


def test_what_is_gone_counts_as_broken_and_is_not_undone(nav):
    decision = cut()
    items = pending(nav, decision)
    other = {"learning_rate": Action(name="learning_rate", arguments={"factor": 0.1})}
    for force, step in (({}, 110), (other, 110), ({"learning_rate": decision.proposal.action}, 90)):
        found = judge(items, nav.situation(step, run=log(0.5, step), in_force=force))
        assert [(o.kept, o.undone) for o in found.outcomes] == [(False, False)]
        assert (found.pending, found.undo) == ([], ())


def test_an_act_that_has_ended_by_itself_is_judged_all_the_same(nav):
    items = pending(nav, cut(3.0, steps=10))
    found = judge(items, nav.situation(120, run=log(0.5, 120)))
    assert [o.kept for o in found.outcomes] == [True]


def test_something_critical_behind_an_act_breaks_it_at_once(nav):
    decision = cut(3.0)
    force = {"learning_rate": decision.proposal.action}
    items = pending(nav, decision)
    for onset, outcomes in ((99, 0), (101, 1)):
        alarm = nav.finding("divergence", severity="critical", onset=onset, last=110)
        found = judge(items, nav.situation(110, alarm, run=log(0.5, 110), in_force=force))
        assert len(found.outcomes) == len(found.undo) == outcomes


def test_rungs_against_something_critical_are_not_undone(nav):
    decision = cut(found=nav.finding("divergence", severity="critical"))
    force = {"learning_rate": decision.proposal.action}
    found = judge(pending(nav, decision), nav.situation(120, run=log(9.0, 120), in_force=force))
    assert [(o.kept, o.undone) for o in found.outcomes] == [(False, False)]
    assert found.undo == ()


def test_a_rollback_is_judged_from_where_it_led(nav):
    decision = cut(name="rollback", arguments={"before": 60})
    items = pending(nav, decision, healthy=(20, 50, 80))
    assert items[0]["since"] == 50
    assert judge(items, nav.situation(60, run=log(0.5, 60))).outcomes == ()
    assert judge(items, nav.situation(70, run=Table({"loss": (np.arange(1, 71), np.ones(70))}))).outcomes[0].kept


def test_a_column_that_has_no_row_does_not_wait_for_ever(nav):
    decision = cut(promise=Promise(column="val_loss", below=1.0, steps=20))
    force = {"learning_rate": decision.proposal.action}
    items = pending(nav, decision)
    assert judge(items, nav.situation(159, run=log(0.5, 159), in_force=force)).outcomes == ()
    found = judge(items, nav.situation(160, run=log(0.5, 160), in_force=force))
    assert [(o.kept, o.undone) for o in found.outcomes] == [(False, True)]
    assert found.undo[0].reason.endswith("no finite value was seen")


def test_what_promises_nothing_is_not_pending(nav):
    assert pend([], [cut(promise=None)], nav.situation(100)) == []
