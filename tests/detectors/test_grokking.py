import numpy as np

from dynaxx.detectors.grokking import Grokking

AT = np.arange(50, 2001, 50)
DECAY = {"optimizer": {"class": "AdamW", "groups": [{"lr": 1e-3, "weight_decay": 1.0}]}}


def log(rng, val=3.0, shrink=0.7):
    steps = np.arange(2000)
    return {
        "loss": (2.3 * np.exp(-steps / 100) + 1e-3) * np.exp(0.1 * rng.standard_normal(2000)),
        "val_loss": (AT, val * np.exp(0.01 * rng.standard_normal(40))),
        "parameter_norm": (
            AT,
            (5 + np.minimum(AT, 500) / 500 - shrink * 6 * np.maximum(0, AT - 500) / 1500)[:, None],
            ("a",),
        ),
    }


def test_solved_apart_and_shrinking_is_a_note(make_log, rng):
    found = Grokking().detect(make_log(log(rng), DECAY))
    assert found.severity == "note"
    assert found.causes[0].name == "grokking"


def test_without_decay_or_with_growing_weights_it_is_not(make_log, rng):
    assert Grokking().detect(make_log(log(rng))) is None
    assert Grokking().detect(make_log(log(rng, shrink=-0.2), DECAY)) is None


def test_a_validation_that_has_followed_is_not_under_way(make_log, rng):
    columns = log(rng)
    columns["val_loss"] = (AT, np.where(AT < 1000, 3.0, 0.005))
    assert Grokking().detect(make_log(columns, DECAY)) is None
