import numpy as np
import pytest

from dynaxx.detectors.gradient_collapse import GradientCollapse
from dynaxx.errors import NotApplicable

AT = np.arange(1, 401)


def log(rng, fall, layers=slice(None), loss=2.3):
    norms = np.exp(0.2 * rng.standard_normal((400, 4)))
    norms[250:, layers] *= fall
    return {"loss": loss * np.exp(0.01 * rng.standard_normal(400)), "grad_norm": (AT, norms, ("a", "b", "c", "d"))}


def test_all_layers_at_once(make_log, rng):
    found = GradientCollapse().detect(make_log(log(rng, 1e-4)))
    assert found.severity == "warning"
    assert abs(found.onset - 251) <= 2
    assert len(found.layers) == 4


def test_some_layers_or_a_mild_fall_are_not(make_log, rng):
    assert GradientCollapse().detect(make_log(log(rng, 1e-4, slice(0, 3)))) is None
    assert GradientCollapse().detect(make_log(log(rng, 0.05))) is None


def test_a_solved_training_set_has_no_gradient_either(make_log, rng):
    columns = log(rng, 1e-4)
    columns["loss"][240:] *= 1e-4
    assert GradientCollapse().detect(make_log(columns)) is None


def test_a_gradient_spike_before_accuses_the_rate_and_dead_units_themselves(make_log, rng):
    columns = log(rng, 1e-4)
    columns["grad_norm"][1][245:250] *= 50
    assert GradientCollapse().detect(make_log(columns)).causes[0].name == "learning_rate_too_high"
    dead = (np.arange(10, 401, 10), np.where(np.arange(10, 401, 10) > 250, 0.9, 0.1)[:, None], ("a",))
    assert (
        GradientCollapse().detect(make_log({**log(rng, 1e-4), "activations.dead": dead})).causes[0].name == "dead_units"
    )


def test_no_gradient_ever(make_log):
    log = {"loss": np.ones(100), "grad_norm": (np.arange(1, 101), np.zeros((100, 2)), ("a", "b"))}
    with pytest.raises(NotApplicable, match="quarter"):
        GradientCollapse().detect(make_log(log))


def test_gradients_that_are_rarely_there(make_log):
    norms = np.zeros((100, 2))
    norms[::10] = 1.0
    log = {"loss": np.ones(100), "grad_norm": (np.arange(1, 101), norms, ("a", "b"))}
    with pytest.raises(NotApplicable, match="quarter"):
        GradientCollapse().detect(make_log(log))
