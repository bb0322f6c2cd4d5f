import numpy as np
import pytest

from dynaxx.detectors.overtraining import Overtraining
from dynaxx.errors import NotApplicable

AT = np.arange(20, 801, 20)


def log(rng, sharper):
    steps = np.arange(800)
    val = 0.6 + 1.7 * np.exp(-AT / 80) + 0.4 * np.maximum(0, AT - 300) / 500
    return {
        "loss": 2.3 * np.exp(-steps / 150) * np.exp(0.05 * rng.standard_normal(800)),
        "val_loss": (AT, val * np.exp(0.01 * rng.standard_normal(40))),
        "sharpness": (AT, np.where(AT < 320, 5.0, 5.0 * sharper) * np.exp(0.02 * rng.standard_normal(40))),
    }


def test_sharpness_that_rises_too(make_log, rng):
    found = Overtraining().detect(make_log(log(rng, 3.0)))
    assert found.severity == "warning"
    assert "3." in found.causes[0].why or "2.9" in found.causes[0].why


def test_sharpness_that_stays_is_overfitting_alone(make_log, rng):
    assert Overtraining().detect(make_log(log(rng, 1.0))) is None


def test_outputs_that_repeat_count_as_well(make_log, rng):
    columns = {**log(rng, 1.0), "samples.repetition": (AT, np.where(AT < 320, 0.1, 0.3))}
    assert Overtraining().detect(make_log(columns)) is not None


def test_without_either_it_cannot_tell(make_log, rng):
    columns = log(rng, 1.0)
    del columns["sharpness"]
    with pytest.raises(NotApplicable, match="neither sharpness"):
        Overtraining().detect(make_log(columns))
