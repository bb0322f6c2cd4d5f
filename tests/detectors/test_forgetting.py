import numpy as np
import pytest

from dynaxx.detectors.forgetting import Forgetting
from dynaxx.errors import NotApplicable

AT = np.arange(20, 801, 20)


def log(rng, rise):
    old = 0.5 + np.exp(-AT / 80) + rise * np.maximum(0, AT - 400) / 400
    new = 2.3 * np.exp(-AT / 300)
    return {
        "loss": np.ones(800),
        "val_loss.old": (AT, old * np.exp(0.01 * rng.standard_normal(40))),
        "val_loss.new": (AT, new * np.exp(0.01 * rng.standard_normal(40))),
    }


def test_one_rises_while_the_other_falls(make_log, rng):
    found = Forgetting().detect(make_log(log(rng, 0.8)))
    assert found.severity == "warning"
    assert found.title.startswith("val_loss.old")
    assert abs(found.onset - 400) < 60
    assert found.causes[0].name == "forgetting"


def test_accuracies_count_as_well(make_log, rng):
    old = 0.95 - 0.3 * np.maximum(0, AT - 400) / 400 + 0.003 * rng.standard_normal(40)
    columns = {"val_accuracy.old": (AT, old), "val_accuracy.new": (AT, 0.3 + 0.6 * AT / 800)}
    assert Forgetting().detect(make_log(columns)) is not None


def test_both_falling_is_silent_and_both_rising_is_not_this(make_log, rng):
    assert Forgetting().detect(make_log(log(rng, 0.0))) is None
    columns = log(rng, 0.8)
    columns["val_loss.new"] = columns["val_loss.old"]
    assert Forgetting().detect(make_log(columns)) is None


def test_one_validation_cannot_tell(make_log, rng):
    columns = log(rng, 0.8)
    del columns["val_loss.new"]
    with pytest.raises(NotApplicable, match="two validations"):
        Forgetting().detect(make_log(columns))
