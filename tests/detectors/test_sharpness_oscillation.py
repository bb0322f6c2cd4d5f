import numpy as np
import pytest

from dynaxx.detectors.sharpness_oscillation import SharpnessOscillation
from dynaxx.errors import NotApplicable

AT = np.arange(20, 401, 20)


def log(rng, swing, slope=-0.003, margin=0.6):
    wave = np.where(np.arange(20) % 2, np.exp(swing), np.exp(-swing))
    return {
        "loss": 2.0 + slope * np.arange(400) + 0.05 * rng.standard_normal(400),
        "stability_margin.sharpness": (AT, 2 / margin * wave),
        "stability_margin": (AT, margin / wave),
    }


def test_hopping_without_progress_is_an_alarm(make_log, rng):
    found = SharpnessOscillation().detect(make_log(log(rng, 0.5, slope=0.0)))
    assert found.severity == "warning"
    assert found.causes[0].name == "learning_rate_too_high"


def test_the_edge_of_stability_is_a_note(make_log, rng):
    found = SharpnessOscillation().detect(make_log(log(rng, 0.5, margin=1.0)))
    assert found.severity == "note"
    assert found.causes[0].name == "edge_of_stability"


def test_a_wandering_sharpness_is_not(make_log, rng):
    columns = log(rng, 0.0)
    assert SharpnessOscillation().detect(make_log(columns)) is None
    columns["stability_margin.sharpness"] = (AT, np.exp(np.cumsum(0.5 * rng.standard_normal(20))))
    assert SharpnessOscillation().detect(make_log(columns)) is None


def test_few_measurements(make_log, rng):
    columns = log(rng, 0.5)
    columns["stability_margin.sharpness"] = (AT[:6], np.ones(6))
    with pytest.raises(NotApplicable, match="at least 12"):
        SharpnessOscillation().detect(make_log(columns))
