from types import MappingProxyType

import numpy as np
import pytest

from dynaxx import catalog
from dynaxx.controllers._plateau import may_gain
from dynaxx.core.navigation import Situation
from dynaxx.core.records import Action
from dynaxx.runlog import Table

AT, EVALUATIONS = np.arange(1, 1001), np.arange(20, 1001, 20)


def converged(nav, step, run, *others, **known):
    found = nav.finding("convergence", ("converged", 0.9), severity="note", onset=300, last=step)
    return nav.situation(step, found, *others, run=run, **known)


def log(validation=None, rate=None, **manifest):
    """A run of 1000 steps at a constant rate whose validation rests on 1, unless said otherwise."""
    validation = np.ones(50) if validation is None else validation
    series = {
        "loss": (AT, 1 + 0.001 * np.sin(AT * 2.3)),
        "lr": (AT, np.full(1000, 0.1) if rate is None else rate),
        "val_loss": (EVALUATIONS, validation + 1e-4 * np.cos(EVALUATIONS * 1.7)),
    }
    return Table(series, manifest=manifest)


def at(step, run):
    known = {"findings": (), "fresh": frozenset(), "in_force": MappingProxyType({}), "able": frozenset()}
    return Situation(step=step, steps=1000, run=run, **known)


def ask(situation):
    controller = catalog.get("controllers", "converge")()
    return list(controller.decide(controller.init(), situation)[1])


def play(nav, run, first, last, steps=1000):
    """What is proposed at every tenth step, and the state at the end."""
    controller = catalog.get("controllers", "converge")()
    state, said = controller.init(), []
    for step in range(first, last, 10):
        state, proposals = controller.decide(state, converged(nav, step, run, steps=steps))
        said += [(step, proposal.action) for proposal in proposals]
        if any(proposal.action.name == "stop" for proposal in proposals):
            break
    return state, said


def test_the_end_is_advised_then_annealed_then_decided(nav):
    state, said = play(nav, log(), 400, 520)
    assert [(step, action.name) for step, action in said] == [(400, "advice"), (400, "learning_rate"), (450, "stop")]
    assert said[1][1].arguments == {"factor": 0.1}
    assert "50 further steps gained" in said[2][1].reason
    assert "550 of 1000 steps (55%) saved" in said[2][1].reason
    assert state["since"] == 400


def test_the_last_stretch_is_lengthened_while_it_gains_three_times_at_most(nav):
    falls = np.where(EVALUATIONS > 400, np.exp(-(EVALUATIONS - 400) / 500), 1.0)
    assert play(nav, log(falls), 400, 700)[1][-1][0] == 550
    once = np.where(EVALUATIONS > 400, 0.8, 1.0)
    assert play(nav, log(once), 400, 700)[1][-1][0] == 500


@pytest.mark.parametrize(
    ("rate", "manifest"),
    [
        (0.1 * (1 - AT / 1000), {}),  # decaying now
        (np.where(AT < 300, 0.1, 0.05), {}),  # lowered before, and perhaps again
        (None, {"facts": {"schedule": "wsd:warmup=0.1"}}),  # yet to decay
        (None, {"scheduler": "CosineAnnealingLR"}),
    ],
)
def test_no_end_while_the_schedule_is_yet_to_lower_the_rate(nav, rate, manifest):
    assert ask(converged(nav, 600, log(rate=rate, **manifest))) == []


@pytest.mark.parametrize(("slope", "step", "ends"), [(0.05, 600, False), (0.012, 600, True), (0.05, 880, True)])
def test_no_end_while_the_trend_promises_more_than_a_hundredth(nav, slope, step, ends):
    run = log(2 - slope * np.log(EVALUATIONS))  # ln(1000 / 600) = 0.51, ln(1000 / 880) = 0.13
    assert bool(ask(converged(nav, step, run))) == ends


def test_noise_that_could_hide_a_hundredth_is_no_end(nav):
    noise = np.random.default_rng(0).standard_normal(50)
    assert ask(converged(nav, 600, log(1 + 0.05 * noise))) == []
    assert len(ask(converged(nav, 600, log(1 + 0.002 * noise)))) == 2


def test_a_fall_that_has_set_in_again_is_no_end():
    rests = 2 - 0.2 * np.minimum(EVALUATIONS, 300) / 300
    again = np.where(EVALUATIONS > 450, rests - 0.03 * np.log(EVALUATIONS / 450), rests)
    assert may_gain(at(600, log(rests))) < 0.002
    # The quarter has the whole slope, 0.03, and 1.79 ln-units are its level; half of the steps have less than half.
    assert may_gain(at(600, log(again))) == pytest.approx(0.03 * np.log(1000 / 600) / 1.79, rel=0.15)


@pytest.mark.parametrize(("deviation", "ends"), [(0.0, True), (0.15, False)])
def test_what_lies_above_the_best_must_be_made_good_first(deviation, ends):
    risen = np.where(EVALUATIONS < 250, 1.0, 1.3) - 0.05 * np.log(EVALUATIONS / 600)
    noisy = risen + deviation * np.random.default_rng(0).standard_normal(50)
    # 0.05 ln(1000 / 600) = 0.026 may be gained, the loss lies 0.26 above its best: by chance, where the noise is large.
    assert (may_gain(at(600, log(noisy))) < 0.0) == ends


def test_a_rate_that_has_decayed_to_nothing_is_no_reason_to_wait(nav):
    [word] = ask(converged(nav, 600, log(rate=0.1 * np.maximum(0.001, 1 - AT / 500))))
    assert word.action.name == "advice"  # there is nothing to anneal


def test_no_end_while_grokking_or_while_something_is_wrong(nav):
    grokking = nav.finding("grokking", ("grokking", 0.9), severity="note", last=600)
    wrong = nav.finding("oscillation", ("learning_rate_too_high", 0.6), last=600)
    for other in (grokking, wrong):
        assert ask(converged(nav, 600, log(), other)) == []


def test_an_alarm_interrupts_the_last_stretch_for_a_tenth_of_the_run(nav):
    controller = catalog.get("controllers", "converge")()
    state, _ = controller.decide(controller.init(), converged(nav, 400, log()))
    wrong = nav.finding("oscillation", ("learning_rate_too_high", 0.6), last=420)
    state, proposals = controller.decide(state, converged(nav, 420, log(), wrong))
    assert proposals == ()
    assert (state["began"], state["since"], state["not_before"]) == (None, None, 520)
    assert controller.decide(state, converged(nav, 510, log()))[1] == ()
    assert len(controller.decide(state, converged(nav, 530, log()))[1]) == 2


def test_a_run_whose_rate_is_being_mended_has_not_converged(nav):
    force = {"learning_rate": Action(name="learning_rate", arguments={"factor": 0.06})}
    assert ask(converged(nav, 600, log(), in_force=force)) == []
