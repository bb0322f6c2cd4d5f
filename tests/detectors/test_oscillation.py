import numpy as np
import pytest

from dynaxx.detectors.oscillation import Oscillation
from dynaxx.errors import NotApplicable


def bouncing(rng, steps=400):
    return 2.3 * (1 + 1.5 * rng.random(steps))


def falling(rng, steps=400):
    return 2.3 * np.exp(-np.arange(steps) / 80) + 0.02 * rng.random(steps)


SICK = {
    "stability_margin": (np.arange(50, 401, 50), np.full(8, 0.2)),
    "update_ratio.total": (np.arange(1, 401, 4), np.full(100, 0.3)),
    "gradient_agreement": (np.arange(2, 402, 4), np.full(100, -0.4)),
}


def test_a_bouncing_run_with_signs_is_found(make_log, rng):
    found = Oscillation().detect(make_log({"loss": bouncing(rng), **SICK}, steps=400))
    assert found.severity == "warning"
    assert found.causes[0].name == "learning_rate_too_high"
    action = found.causes[0].remedies[0].action
    assert action.name == "learning_rate"
    assert action.arguments["factor"] < 1


def test_the_edge_of_stability_is_healthy(make_log, rng):
    assert Oscillation().detect(make_log({"loss": falling(rng), **SICK}, steps=400)) is None


def test_a_loss_that_bounces_by_noise_alone_is_not_enough(make_log, rng):
    calm = {"stability_margin": (np.arange(50, 401, 50), np.full(8, 8.0))}
    assert Oscillation().detect(make_log({"loss": bouncing(rng), **calm}, steps=400)) is None


def test_weights_that_begin_at_zero_grow_without_harm(make_log, rng):
    norms = (np.arange(1, 401, 4), np.linspace(0.01, 5, 100)[:, None], ("a",))
    log = {"loss": 2.3 + 0.01 * rng.standard_normal(400), "parameter_norm": norms, "stability_margin": ([100], [1e-6])}
    assert Oscillation().detect(make_log(log, steps=400)) is None


def test_momentum_is_told_from_the_rate(make_log, rng):
    optimizer = {"class": "SGD", "groups": [{"lr": 0.1, "momentum": 0.995}]}
    found = Oscillation().detect(make_log({"loss": bouncing(rng), **SICK}, {"optimizer": optimizer}, steps=400))
    names = {c.name: c.confidence for c in found.causes}
    assert names["momentum_too_high"] > 0.4


def test_repeating_gradients_accuse_the_sum(make_log, rng):
    log = {**SICK, "gradient_agreement": (np.arange(2, 402, 4), np.full(100, 0.98))}
    found = Oscillation().detect(make_log({"loss": bouncing(rng), **log}, steps=400))
    assert "gradients_not_cleared" in [c.name for c in found.causes[:2]]


def test_the_start_is_left_in_peace(make_log, rng):
    with pytest.raises(NotApplicable, match="too early"):
        Oscillation().detect(make_log({"loss": bouncing(rng, 55), **SICK}, steps=2000))
