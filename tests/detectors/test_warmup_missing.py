import numpy as np
import pytest

from dynaxx.detectors.warmup_missing import WarmupMissing
from dynaxx.errors import NotApplicable

AT = np.arange(1, 601)


def log(rng, thrown, back, lr=None):
    loss = 2.3 * np.exp(-AT / 150) + 2.3 * thrown * np.exp(-((AT / back) ** 2)) * (AT > 3)
    rates = np.full(600, 0.1) if lr is None else lr
    return {"loss": loss * np.exp(0.02 * rng.standard_normal(600)), "lr": (AT, rates[:, None], ("g",))}


def test_thrown_back_for_long(make_log, rng):
    found = WarmupMissing().detect(make_log(log(rng, 3.0, 120), steps=600))
    assert found.severity == "warning"
    assert found.causes[0].name == "warmup_missing"


def test_a_catapult_is_a_note(make_log, rng):
    assert WarmupMissing().detect(make_log(log(rng, 3.0, 12), steps=600)).severity == "note"


def test_never_back_accuses_the_rate(make_log, rng):
    loss = np.where(AT < 4, 2.3, 7.0) * np.exp(0.02 * rng.standard_normal(600))
    found = WarmupMissing().detect(make_log({**log(rng, 0, 1), "loss": loss}, steps=600))
    assert found.causes[0].name == "learning_rate_too_high"


def test_a_warm_up_and_a_calm_start_are_silent(make_log, rng):
    assert WarmupMissing().detect(make_log(log(rng, 3.0, 120, 0.1 * np.minimum(1, AT / 60)), steps=600)) is None
    assert WarmupMissing().detect(make_log(log(rng, 0.0, 120), steps=600)) is None


def test_a_log_without_its_start(make_log, rng):
    columns = log(rng, 3.0, 120)
    columns["loss"] = (AT[100:], columns["loss"][100:])
    with pytest.raises(NotApplicable, match="start cannot be seen"):
        WarmupMissing().detect(make_log(columns, steps=600))
