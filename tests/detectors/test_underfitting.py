import numpy as np
import pytest

from dynaxx.detectors.underfitting import Underfitting
from dynaxx.errors import NotApplicable

AT = np.arange(20, 801, 20)


def log(rng, floor, ratio=1.02, norm=1.0):
    steps = np.arange(800)
    train = floor + (2.3 - floor) * np.exp(-steps / 60)
    val = floor * ratio + (2.3 - floor) * np.exp(-AT / 60)
    return {
        "loss": train * np.exp(0.01 * rng.standard_normal(800)),
        "val_loss": (AT, val * np.exp(0.005 * rng.standard_normal(40))),
        "parameter_norm": (AT, np.linspace(1, norm, 40)[:, None], ("a",)),
    }


def test_high_and_flat_is_a_note(make_log, rng):
    found = Underfitting().detect(make_log(log(rng, 1.8), steps=800))
    assert found.severity == "note"


def test_low_is_none(make_log, rng):
    assert Underfitting().detect(make_log(log(rng, 0.4), steps=800)) is None


def test_shrinking_weights_accuse_the_decay(make_log, rng):
    optimizer = {"class": "SGD", "groups": [{"lr": 0.1, "weight_decay": 0.3}]}
    found = Underfitting().detect(make_log(log(rng, 1.8, norm=0.1), {"optimizer": optimizer}, steps=800))
    assert found.severity == "warning"
    assert found.causes[0].name == "weight_decay_too_high"


def test_validation_below_training_accuses_the_regularisation(make_log, rng):
    found = Underfitting().detect(make_log(log(rng, 1.8, ratio=0.75), steps=800))
    assert found.causes[0].name == "regularisation_too_strong"
    assert found.test.check == "eval_train_gap"


def test_both_modes_part_regularisation_from_labels(make_log, rng):
    def first(differs):
        event = {"kind": "check", "step": 700, "name": "eval_train_gap", "values": {"differs": differs}}
        return Underfitting().detect(make_log(log(rng, 1.8, ratio=0.75), events=[event], steps=800)).causes[0].name

    assert first(True) == "regularisation_too_strong"
    assert first(False) == "label_noise"


def test_one_batch_parts_capacity_from_noise(make_log, rng):
    def confidence(solved):
        event = {"kind": "check", "step": 700, "name": "overfit_one_batch", "values": {"solved": solved}}
        found = Underfitting().detect(make_log(log(rng, 1.8), events=[event], steps=800))
        return {c.name: c.confidence for c in found.causes}

    assert confidence(False)["too_little_capacity"] > confidence(True)["too_little_capacity"]
    assert confidence(True)["label_noise"] > confidence(False)["label_noise"]


def test_early_is_not_judged(make_log, rng):
    with pytest.raises(NotApplicable, match="too early"):
        Underfitting().detect(make_log(log(rng, 1.8), steps=4000))


def test_validation_below_training_is_an_alarm_whichever_of_both_it_is(make_log, rng):
    """That a model drops nothing moves the suspicion to its labels, and takes nothing from the alarm."""
    columns = log(rng, 1.8, ratio=0.75)
    for dropped, cause in (({}, "label_noise"), ({"1": 0.6}, "regularisation_too_strong")):
        found = Underfitting().detect(make_log(columns, {"model": {"layers": [], "dropout": dropped}}, steps=800))
        assert (found.severity, found.causes[0].name) == ("warning", cause)


def test_a_model_that_was_trained_before_has_little_left_to_gain(make_log, rng):
    columns = log(rng, 1.8, ratio=0.75)
    classes = {"outputs.guess_loss": np.full(800, np.log(100)), "outputs.width": np.full(800, 100.0)}
    assert Underfitting().detect(make_log(columns, steps=800)).severity == "warning"
    assert Underfitting().detect(make_log({**columns, **classes}, steps=800)).severity == "note"
