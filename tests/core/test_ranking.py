"""Ranking of causes: independent reasons add up, symptoms yield to what brings them about."""

import pytest

from dynaxx.core.causes import BRINGS_ABOUT, CAUSES, STATES
from dynaxx.core.findings import Cause, Finding
from dynaxx.core.ranking import rank


def finding(name, first, *causes, severity="warning"):
    named = tuple(Cause(name=cause, confidence=sure) for cause, sure in causes)
    return Finding(code="D0", name=name, title=name, severity=severity, spans=((first, 400),), causes=named)


def order(*findings):
    return [cause.name for cause in rank(findings)]


def test_independent_reasons_add_up_and_notes_count_little():
    first, second = rank(
        [
            finding("a", 5, ("label_noise", 0.5), ("data_shift", 0.2)),
            finding("b", 3, ("label_noise", 0.5)),
            finding("c", 9, ("data_shift", 0.5), severity="note"),
        ]
    )
    assert (first.name, first.confidence, first.onset) == ("label_noise", pytest.approx(0.75), 3)
    assert second.confidence == pytest.approx(1 - 0.8 * 0.85)
    assert second.findings == ("a", "c")


def test_a_state_yields_to_a_less_certain_cause_that_began_earlier():
    rate = finding("update_size", 3, ("learning_rate_too_high", 0.62))
    faded = finding("vanishing_gradients", 197, ("vanishing_gradients", 0.75))
    first, second = rank([rate, faded])
    assert (first.name, second.name, second.symptom_of) == (
        "learning_rate_too_high",
        "vanishing_gradients",
        "learning_rate_too_high",
    )


def test_what_begins_long_before_is_no_symptom():
    rate = finding("oscillation", 200, ("learning_rate_too_high", 0.7))
    dead = finding("dead_units", 1, ("dead_units", 0.9))
    assert order(rate, dead) == ["dead_units", "learning_rate_too_high"]


def test_a_guess_explains_nothing():
    guess = finding("divergence", 1, ("learning_rate_too_high", 0.4))
    faded = finding("vanishing_gradients", 20, ("vanishing_gradients", 0.3))
    assert [cause.symptom_of for cause in rank([guess, faded])] == ["", ""]


def test_what_somebody_sets_yields_only_to_what_is_nearly_as_sure():
    rate = finding("oscillation", 1, ("learning_rate_too_high", 0.99))
    warmup = finding("warmup_missing", 1, ("warmup_missing", 0.55))
    assert order(rate, warmup)[0] == "learning_rate_too_high"
    inputs = finding("initialisation", 1, ("inputs_not_normalised", 0.9))
    assert order(rate, inputs)[0] == "inputs_not_normalised"


def test_the_relation_is_made_of_causes_and_holds_no_circle():
    assert set(BRINGS_ABOUT) | STATES <= set(CAUSES)

    def below(name, path=()):
        assert name not in path, (*path, name)
        for symptom in BRINGS_ABOUT.get(name, ()):
            assert symptom in CAUSES
            below(symptom, (*path, name))

    for name in BRINGS_ABOUT:
        below(name)


def test_where_a_healthy_run_is_comes_after_what_may_be_the_matter():
    rested = finding("convergence", 300, ("converged", 0.8), severity="note")
    risen = finding("divergence", 200, ("data_shift", 0.4), severity="note")
    assert order(rested, risen) == ["data_shift", "converged"]
