"""Every controller: silent where nothing is found, pure, its state plain data, its words in `dynaxx list`."""

import copy
import json

import numpy as np
import pytest

from dynaxx import catalog
from dynaxx.controllers import begin, navigate
from dynaxx.core.causes import CAUSES
from dynaxx.runlog import Table

NAMES = catalog.names("controllers")


def every_alarm(nav, severity="warning"):
    """One finding for every cause, and those that controllers know by name."""
    found = [nav.finding(f"of_{cause}", (cause, 0.9), severity=severity, check="replay_batch") for cause in CAUSES]
    names = ("loss_spike", "update_mismatch", "convergence", "overfitting")
    return [*found, *(nav.finding(name, ("hard_batch", 0.9), severity=severity) for name in names)]


@pytest.mark.parametrize("name", NAMES)
def test_it_says_nothing_about_a_silent_run(name, nav):
    controller = catalog.get("controllers", name)()
    state = controller.init()
    for step in range(10, 300, 10):
        state, proposals = controller.decide(state, nav.situation(step))
        assert list(proposals) == []


@pytest.mark.parametrize("name", NAMES)
def test_notes_and_findings_that_are_over_move_nothing(name, nav):
    controller = catalog.get("controllers", name)()
    notes = every_alarm(nav, "note")
    notes = [f for f in notes if f.name != "convergence"]  # that one is a note by nature
    state, proposals = controller.decide(controller.init(), nav.situation(200, *notes))
    assert list(proposals) == []
    _, proposals = controller.decide(state, nav.situation(210, *every_alarm(nav), fresh=frozenset()))
    assert list(proposals) == []


@pytest.mark.parametrize("name", NAMES)
def test_it_is_pure_and_its_state_survives_json(name, nav):
    controller = catalog.get("controllers", name)()
    where = nav.situation(400, *every_alarm(nav), healthy=(20, 40), last={})
    state = controller.init()
    before = copy.deepcopy(state)
    first, proposals = controller.decide(state, where)
    assert state == before
    again, repeated = catalog.get("controllers", name)().decide(json.loads(json.dumps(state)), where)
    assert [p.as_dict() for p in proposals] == [p.as_dict() for p in repeated]
    assert json.loads(json.dumps(first)) == first == again
    assert all(p.controller == name for p in proposals)
    assert all(0 <= p.level <= 6 for p in proposals)


@pytest.mark.parametrize("name", NAMES)
def test_a_log_without_a_loss_or_with_three_steps_breaks_nothing(name, nav):
    controller = catalog.get("controllers", name)()
    for run in (Table({}), Table({"accuracy": ([1, 2, 3], [0.1, 0.2, 0.3])}), Table({"loss": ([1], [np.nan])})):
        controller.decide(controller.init(), nav.situation(3, *every_alarm(nav, "critical"), run=run))
        controller.decide(controller.init(), nav.situation(500, *every_alarm(nav, "critical"), run=run, steps=None))


def test_together_they_say_nothing_about_a_silent_run(nav):
    state = begin()
    for step in range(10, 1000, 10):
        turn = navigate(state, nav.situation(step), "act")
        assert (turn.outcomes, turn.undo, turn.decisions, turn.failed) == ((), (), (), {})
        state = turn.state
    assert json.loads(json.dumps(state)) == state


def test_off_is_off(nav):
    turn = navigate(begin(), nav.situation(400, *every_alarm(nav, "critical"), healthy=(20,)), "off")
    assert turn.decisions == ()


def test_a_controller_that_fails_is_left_out_and_named(nav, monkeypatch):
    kind = catalog.get("controllers", "rate_up")

    def failing(self, state, situation):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(kind, "decide", failing)
    turn = navigate(begin(), nav.situation(100), "act")
    assert turn.failed == {"rate_up": "ZeroDivisionError: a defect"}
    assert navigate(turn.state, nav.situation(110), "act").failed == {}
    assert turn.state["controllers"]["recover"] is not None
