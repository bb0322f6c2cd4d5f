"""Whom the standing findings accuse: not a symptom, and not a setting that is another one by now."""

import pytest

from dynaxx.controllers import accused
from dynaxx.core.causes import BRINGS_ABOUT
from dynaxx.core.records import Action

RATE = "learning_rate_too_high"


def test_a_symptom_is_not_accused_beside_its_cause(nav):
    assert "exploding_gradients" in BRINGS_ABOUT[RATE]
    steps = nav.finding("update_size", (RATE, 0.9), onset=50)
    burst = nav.finding("exploding_gradients", ("exploding_gradients", 0.9), onset=60)
    both = {"exploding_gradients"}
    assert accused(nav.situation(100, burst), both).cause == "exploding_gradients"
    assert accused(nav.situation(100, steps, burst), both) is None
    assert accused(nav.situation(100, steps, burst), {RATE, *both}).cause == RATE
    guess = nav.finding("update_size", (RATE, 0.4), onset=50)
    assert accused(nav.situation(100, guess, burst), both).cause == "exploding_gradients"


def test_a_cause_that_was_answered_explains_nothing_any_more(nav):
    memory = nav.finding("momentum_memory", ("momentum_too_high", 0.9), onset=50)
    swings = nav.finding("oscillation", (RATE, 0.9), onset=60)
    force = {"momentum": Action(name="momentum", arguments={"most": 0.9})}
    known = {"momentum_too_high", RATE}
    assert RATE in BRINGS_ABOUT["momentum_too_high"]
    assert accused(nav.situation(100, memory, swings), known).cause == "momentum_too_high"
    assert accused(nav.situation(100, memory, swings, in_force=force), known).cause == RATE


def test_an_alarm_that_names_the_cause_behind_its_first_accuses_that(nav):
    assert RATE in BRINGS_ABOUT["schedule_too_aggressive"]
    spike = nav.finding("loss_spike", (RATE, 0.68), ("schedule_too_aggressive", 0.61), onset=50)
    found = accused(nav.situation(100, spike), {RATE, "schedule_too_aggressive"})
    assert (found.cause, found.confidence) == ("schedule_too_aggressive", pytest.approx(0.61))
    assert accused(nav.situation(100, spike), {RATE}) is None


def test_a_note_supports_what_an_alarm_names_and_accuses_nobody_alone(nav):
    """An MLP at 70 times its rate: dead units are the alarm, and what killed them is over by then, so a note."""
    dead = nav.finding("dead_units", ("dead_units", 0.55), (RATE, 0.48), onset=11)
    steps = nav.finding("update_size", (RATE, 0.83), onset=1, severity="note")
    assert "dead_units" in BRINGS_ABOUT[RATE]
    assert accused(nav.situation(20, dead), {RATE}) is None
    assert accused(nav.situation(20, steps), {RATE}) is None
    found = accused(nav.situation(20, dead, steps), {RATE})
    assert (found.cause, found.finding) == (RATE, dead)
    assert found.confidence == pytest.approx(1 - (1 - 0.48) * (1 - 0.3 * 0.83))
    unnamed = nav.finding("dead_units", ("dead_units", 0.55), onset=11)
    assert accused(nav.situation(20, unnamed, steps), {RATE}) is None
