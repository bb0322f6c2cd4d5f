import numpy as np
import pytest

from dynaxx.detectors.overfitting import Overfitting
from dynaxx.errors import NotApplicable

AT = np.arange(20, 801, 20)


def log(rng, rise, noise=0.01, train=None, start=2.3):
    steps = np.arange(800)
    train = start * np.exp(-steps / 150) + 0.01 if train is None else train
    val = 0.6 + 1.7 * np.exp(-AT / 80) + rise * np.maximum(0, AT - 300) / 500
    return {
        "loss": train * np.exp(0.05 * rng.standard_normal(800)),
        "val_loss": (AT, val * np.exp(noise * rng.standard_normal(40))),
    }


def test_a_rise_with_falling_training_is_found(make_log, rng):
    found = Overfitting().detect(make_log(log(rng, 0.5)))
    assert found.severity == "warning"
    assert abs(found.onset - 320) < 80
    assert found.causes[0].name == "overfitting"
    assert found.causes[0].remedies[0].action.name == "stop"


def test_no_rise_and_a_rise_within_the_noise_are_not(make_log, rng):
    for columns in (log(rng, 0.0), log(rng, 0.1, noise=0.15)):
        found = Overfitting().detect(make_log(columns))
        assert found is None or not found.alarms


def test_a_rise_of_both_losses_is_divergence_not_this(make_log, rng):
    steps = np.arange(800)
    train = 0.5 + 1.5 * np.exp(-steps / 60) + 0.002 * np.maximum(0, steps - 300)
    assert Overfitting().detect(make_log(log(rng, 0.5, train=train))) is None


def test_accuracy_that_does_not_suffer_makes_it_a_note(make_log, rng):
    good = (AT, np.minimum(0.98, 0.5 + AT / 600) + 0.001 * rng.standard_normal(40))
    bad = (AT, 0.95 - 0.1 * np.maximum(0, AT - 300) / 500 + 0.001 * rng.standard_normal(40))
    assert Overfitting().detect(make_log({**log(rng, 0.5), "val_accuracy": good})).severity == "note"
    assert Overfitting().detect(make_log({**log(rng, 0.5), "val_accuracy": bad})).severity == "warning"


def test_what_never_carries_over(make_log, rng):
    columns = log(rng, 0.0)
    columns["val_loss"] = (AT, 6 + 0.3 * rng.standard_normal(40))
    found = Overfitting().detect(make_log(columns))
    assert "nothing carries over" in found.title
    decay = {"optimizer": {"class": "AdamW", "groups": [{"lr": 1e-3, "weight_decay": 1.0}]}}
    assert Overfitting().detect(make_log(columns, decay)) is None


def test_a_memorised_training_set_with_a_flat_validation(make_log, rng):
    steps = np.arange(800)
    val = (AT, (0.6 + 1.7 * np.exp(-AT / 40)) * np.exp(0.002 * rng.standard_normal(40)))
    memorised, fitted = 2.3 * np.exp(-steps / 40) + 0.003, 2.3 * np.exp(-steps / 40) + 0.15
    found = Overfitting().detect(make_log({"loss": memorised, "val_loss": val}))
    assert found.severity == "note"
    assert "does not carry over" in found.title
    assert Overfitting().detect(make_log({"loss": fitted, "val_loss": val})) is None


def test_a_check_of_the_examples_points_to_labels(make_log, rng):
    event = {"kind": "check", "step": 700, "name": "example_losses", "values": {"outlier_share": 0.2}}
    plain = Overfitting().detect(make_log(log(rng, 0.5)))
    told = Overfitting().detect(make_log(log(rng, 0.5), events=[event]))
    labels = [{c.name: c.confidence for c in found.causes}["label_noise"] for found in (plain, told)]
    assert labels[1] > labels[0] + 0.2


def test_few_evaluations(make_log, rng):
    columns = log(rng, 0.5)
    columns["val_loss"] = (AT[:5], np.ones(5))
    with pytest.raises(NotApplicable, match="at least 8"):
        Overfitting().detect(make_log(columns))


def test_losses_of_opposite_sign_do_not_measure_the_same(make_log, rng):
    columns = log(rng, 0.5)
    columns["loss"] = -np.arange(1.0, 801.0)
    with pytest.raises(NotApplicable, match="do not measure the same"):
        Overfitting().detect(make_log(columns))


def test_a_validation_loss_that_has_only_risen_under_strong_decay_may_yet_follow(make_log, rng):
    columns = log(rng, 0.0, train=3 * np.exp(-np.arange(800) / 300))
    columns["val_loss"] = (AT, 3.0 + 2.0 * (1 - np.exp(-AT / 300)))
    for decay, severity in ((1.0, "note"), (0.05, "warning")):
        groups = {"optimizer": {"class": "AdamW", "groups": [{"lr": 1e-3, "weight_decay": decay}]}}
        assert Overfitting().detect(make_log(columns, groups)).severity == severity


def test_a_net_that_was_trained_before_is_not_compared_with_a_guess(make_log, rng):
    columns = log(rng, 0.0, train=0.12 * np.exp(-np.arange(800) / 300))
    columns["val_loss"] = (AT, 0.15 - 0.02 * AT / 800)
    assert Overfitting().detect(make_log(columns)) is None
