import math

import numpy as np
import pytest

from dynaxx.detectors.label_noise import LabelNoise
from dynaxx.errors import NotApplicable

STEPS = 400
LN10 = math.log(10)


@pytest.fixture
def run(make_log, facts_of, rng):
    def run(level, update=1e-3, events=(), first=LN10, **more):
        loss = np.broadcast_to(level, (STEPS,)) * LN10 * rng.lognormal(0, 0.02, STEPS)
        loss[0] = first
        columns = {
            "loss": loss,
            "outputs.guess_loss": np.full(STEPS, LN10),
            "outputs.width": np.full(STEPS, 10.0),
            "update_ratio": np.full((STEPS, 3), update),
            **more,
        }
        return make_log(columns, manifest=facts_of(3), events=list(events))

    return run


def test_a_loss_at_chance_in_spite_of_updates_is_found(run):
    found = LabelNoise().detect(run(1.0))
    assert found.severity == "warning"
    assert found.causes[0].name == "shuffled_labels"
    assert found.test.check == "label_shuffle"


def test_a_little_that_was_learned_makes_it_noise(run):
    assert LabelNoise().detect(run(0.93)).causes[0].name == "label_noise"


def test_a_run_that_learns_or_still_falls_is_not(run):
    assert LabelNoise().detect(run(0.7)) is None
    assert LabelNoise().detect(run(np.linspace(1.0, 0.92, STEPS))) is None


@pytest.mark.parametrize(
    "reason",
    [
        {"update": 1e-6},
        {"activations.dead": np.full((STEPS, 3), 0.9)},
        {"activations.saturated": np.full((STEPS, 3), 0.9)},
        {"outputs.normalised": np.ones(STEPS)},
    ],
)
def test_runs_that_fail_for_reasons_of_their_own_are_not(run, reason):
    assert LabelNoise().detect(run(1.0, **reason)) is None


def test_the_check_decides(run):
    def event(informative):
        return {"kind": "check", "step": 9, "name": "label_shuffle", "values": {"informative": informative}}

    assert LabelNoise().detect(run(1.0, events=[event(False)])).causes[0].confidence > 0.9
    assert LabelNoise().detect(run(1.0, events=[event(True)])).causes[0].name != "shuffled_labels"


def test_a_regression_and_a_rate_still_warming_up_are_not_applicable(run):
    with pytest.raises(NotApplicable, match="cross-entropy"):
        LabelNoise().detect(run(1.0, first=40.0))
    with pytest.raises(NotApplicable, match="rate"):
        LabelNoise().detect(run(1.0, lr=np.linspace(0, 1, STEPS)[:, None] ** 4))


def evaluated(loss, val, accuracy):
    """A run whose training loss has levelled off, and its evaluations."""
    at = range(20, STEPS + 1, 20)
    return {"level": loss / LN10, "val_loss": (at, np.full(20, val)), "val_accuracy": (at, np.full(20, accuracy))}


def test_a_model_that_is_right_and_not_sure_learned_contradictions(run):
    """Half of ten labels redrawn: the model gives 0.55 to the right class, and is right 95 % of the time."""
    doubt = -math.log(0.55)
    noisy = -0.55 * math.log(0.55) - 0.45 * math.log(0.05)
    found = LabelNoise().detect(run(**evaluated(noisy, doubt, 0.95)))
    warranted = -0.95 * math.log(0.95) - 0.05 * math.log(0.05 / 9)
    assert found.evidence[0].value == pytest.approx(doubt / warranted)
    assert found.severity == "warning"
    assert LabelNoise().detect(run(**evaluated(1.8, 0.9, 0.94))).causes[0].name == "label_noise"


def test_dropout_and_overfitting_are_not(run):
    assert LabelNoise().detect(run(**evaluated(0.6, 0.2, 0.95))) is None, "as sure as it is right"
    assert LabelNoise().detect(run(**evaluated(0.01, 0.9, 0.8))) is None, "the training loss is the smaller one"
    assert LabelNoise().detect(run(**evaluated(1.9, 1.5, 0.15))) is None, "hardly better than a guess"


def test_labels_that_were_learned_once_are_not_without_information(run):
    assert LabelNoise().detect(run(np.where(np.arange(STEPS) < 150, 0.3, 1.0))) is None


def test_a_loss_of_ln_2_beside_two_decided_outputs_is_no_classifiers(run):
    """A generator of points in the plane, whose loss hovers at ln 2: its outputs are no indifferent logits."""
    two = {"outputs.width": np.full(STEPS, 2.0), "first": math.log(2), "level": math.log(2) / LN10}
    indifferent = {**two, "outputs.guess_loss": np.full(STEPS, math.log(2))}
    spread = {**two, "outputs.guess_loss": np.linspace(math.log(2), 1.3, STEPS)}
    assert LabelNoise().detect(run(**indifferent)) is not None
    assert LabelNoise().detect(run(**spread)) is None
