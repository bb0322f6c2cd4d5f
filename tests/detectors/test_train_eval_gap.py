import numpy as np
import pytest

from dynaxx.detectors.overfitting import Overfitting
from dynaxx.detectors.train_eval_gap import TrainEvalGap
from dynaxx.errors import NotApplicable

AT = np.arange(20, 401, 20)


def log(rng, ratio, floor=1.5):
    steps = np.arange(400)
    train = floor + (2.3 - floor) * np.exp(-steps / 60)
    return {
        "loss": train * np.exp(0.01 * rng.standard_normal(400)),
        "val_loss": (AT, ratio * (floor + (2.3 - floor) * np.exp(-AT / 60)) * np.exp(0.01 * rng.standard_normal(20))),
    }


def check(train, evaluation):
    return [{"kind": "check", "step": 300, "name": "eval_train_gap", "values": {"train": train, "eval": evaluation}}]


def test_validation_far_below_training(make_log, rng):
    found = TrainEvalGap().detect(make_log(log(rng, 0.45)))
    assert found.severity == "warning"
    assert found.causes[0].name == "regularisation_too_strong"


def test_a_little_below_is_dropout_as_usual(make_log, rng):
    assert TrainEvalGap().detect(make_log(log(rng, 0.6))).severity == "note"
    assert TrainEvalGap().detect(make_log(log(rng, 0.95))) is None
    assert TrainEvalGap().detect(make_log(log(rng, 0.5, floor=0.1))) is None


def test_the_same_batch_in_both_modes_decides(make_log, rng):
    worse = TrainEvalGap().detect(make_log(log(rng, 1.0), events=check(1.0, 3.0)))
    assert (worse.severity, worse.causes[0].name) == ("warning", "train_eval_mismatch")
    costly = TrainEvalGap().detect(make_log(log(rng, 1.0), events=check(3.0, 1.0)))
    assert costly.causes[0].name == "regularisation_too_strong"
    assert TrainEvalGap().detect(make_log(log(rng, 0.5), events=check(1.1, 1.0))) is None


def test_few_evaluations(make_log, rng):
    columns = log(rng, 0.5)
    columns["val_loss"] = (AT[:4], np.ones(4))
    with pytest.raises(NotApplicable, match="at least"):
        TrainEvalGap().detect(make_log(columns))


def test_a_leap_between_two_evaluations_is_the_statistics_and_no_overfitting(make_log, rng):
    columns = log(rng, 1.0, floor=0.5)
    columns["val_loss"][1][15:] *= 40
    found = TrainEvalGap().detect(make_log(columns))
    assert (found.onset, found.severity) == (320, "warning")
    assert found.causes[0].name == "train_eval_mismatch"
    assert Overfitting().detect(make_log(columns)) is None
    back = {**columns, "val_loss": (AT, columns["val_loss"][1] / np.where(AT == 380, 40, 1))}
    assert "leapt" not in TrainEvalGap().detect(make_log(back)).title if TrainEvalGap().detect(make_log(back)) else True
    columns["loss"][310:] *= 40  # where training leaps too it is another matter
    found = TrainEvalGap().detect(make_log(columns))
    assert found is None or "leapt" not in found.title


def test_a_leap_is_no_alarm_before_it_has_stayed(make_log, rng):
    columns = log(rng, 1.0, floor=0.5)
    columns["val_loss"][1][-2:] *= 40
    assert TrainEvalGap().detect(make_log(columns)).severity == "note"
    columns["val_loss"][1][-1] /= 40
    found = TrainEvalGap().detect(make_log(columns))
    assert found is None or "leapt" not in found.title


def test_one_strange_evaluation_that_passes_is_no_leap(make_log, rng):
    columns = log(rng, 1.0, floor=0.5)
    columns["val_loss"][1][10] *= 40
    assert TrainEvalGap().detect(make_log(columns)) is None


def test_while_validation_falls_fast_dropout_costs_nothing_yet(make_log, rng):
    steps = np.arange(400)
    columns = {
        "loss": 1.5 * np.exp(-steps / 600) * np.exp(0.01 * rng.standard_normal(400)),
        "val_loss": (AT, 0.9 * np.exp(-AT / 300)),
    }
    assert TrainEvalGap().detect(make_log({**columns, "val_loss": (AT, np.full(20, 0.35))})).severity == "warning"
    assert TrainEvalGap().detect(make_log(columns)).severity == "note"


def test_nine_tenths_dropped_are_an_alarm_at_once(make_log, rng):
    steps = np.arange(400)
    columns = {
        "loss": 1.5 * np.exp(-steps / 600) * np.exp(0.01 * rng.standard_normal(400)),
        "val_loss": (AT, 0.9 * np.exp(-AT / 300)),
    }
    for share, severity in ((0.9, "warning"), (0.5, "note")):
        found = TrainEvalGap().detect(make_log(columns, {"model": {"layers": [], "dropout": {"6": share}}}))
        assert (found.severity, found.causes[0].name) == (severity, "regularisation_too_strong")
