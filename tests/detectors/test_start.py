import math

import numpy as np
import pytest

from dynaxx.detectors._depth import depth
from dynaxx.detectors._inputs import few_batches, scale_of_inputs
from dynaxx.detectors._rounding import grid
from dynaxx.detectors._start import elasticity, excess, largest_step, start, trained
from dynaxx.errors import NotApplicable


def outputs(guess, width=10.0, loss=None, first=1):
    steps = range(first, first + 5)
    found = {"outputs.guess_loss": (steps, np.full(5, guess)), "outputs.width": (steps, np.full(5, width))}
    return found | ({} if loss is None else {"loss": (steps, np.full(5, loss))})


def test_the_first_step_of_a_classifier(make_log):
    found = start(make_log(outputs(4.0, loss=4.2)))
    assert found.chance == pytest.approx(math.log(10))
    assert found.excess == pytest.approx(4 - math.log(10))
    assert found.classifies
    assert not start(make_log(outputs(4.0, loss=9.0))).classifies
    assert not start(make_log(outputs(0.0, width=1.0, loss=0.0))).classifies


def test_what_does_not_show_the_start_is_not_applicable(make_log):
    with pytest.raises(NotApplicable, match="first steps"):
        start(make_log(outputs(4.0, first=200)))
    with pytest.raises(NotApplicable, match="no vectors"):
        start(make_log(outputs(np.nan, width=np.nan)))
    with pytest.raises(NotApplicable, match="outputs"):
        start(make_log({"loss": np.ones(3)}))
    assert np.isnan(excess(make_log({"loss": np.ones(3)})))


def test_elasticity_of_a_quadratic_is_two(make_log):
    """L = ‖θ‖²/2: g = θ, so ‖g‖‖θ‖/L = 2 wherever it is."""
    sizes = np.geomspace(5, 1, 30)[:, None] * np.array([[0.6, 0.8]])
    loss = (sizes**2).sum(axis=1) / 2
    log = make_log({"grad_norm": sizes, "parameter_norm": (range(1, 31, 3), sizes[::3]), "loss": loss})
    assert elasticity(log) == pytest.approx(2)
    assert np.isnan(elasticity(make_log({"loss": loss})))


def test_the_largest_step_leaves_out_layers_that_were_zero(make_log):
    values = np.tile([1e-3, np.inf, 0.02], (30, 1))
    assert largest_step(make_log({"update_ratio": values})) == pytest.approx(0.02)


def test_the_scale_of_inputs_is_their_root_mean_square_or_the_checks(make_log):
    measured = {"inputs.mean": np.full(5, 3.0), "inputs.std": np.full(5, 4.0)}
    assert scale_of_inputs(make_log(measured)) == pytest.approx(5)
    event = {"kind": "check", "step": 1, "name": "input_statistics", "values": {"rms": 7.0}}
    assert scale_of_inputs(make_log({}, events=[event])) == 7
    assert np.isnan(scale_of_inputs(make_log({})))
    assert few_batches(make_log({"inputs.fingerprint": np.tile([1.0, 2.0], 20)}))
    assert not few_batches(make_log({"inputs.fingerprint": np.arange(40.0)}))


def test_depth_is_the_mean_of_logarithms_per_parameter(make_log, facts_of):
    layers = [("a", "Linear", 100, 100), ("b", "LayerNorm", 8, 8), ("c", "Linear", 400, 400), ("d", "Linear", 100, 100)]
    values = np.tile([1.0, 5.0, 20.0, 100.0], (40, 1))
    found = depth(make_log({"grad_norm": (range(1, 41), values, ("a", "b", "c", "d"))}, manifest=facts_of(layers)))
    assert found.labels == ("a", "c", "d")
    assert found.level[-1] == pytest.approx([-1.0, 0.0, 1.0])


def test_values_on_a_grid(rng):
    unit = 2.0**-24 / 3e-7
    assert grid(unit * rng.integers(0, 4, 60)) == pytest.approx(unit)
    assert grid(rng.lognormal(0, 1, 60)) == 0
    assert grid(np.geomspace(1, 1e4, 60)) == 0
    assert grid(unit * np.ones(5)) == 0, "too few"
    assert grid(np.array([0.3 * 1.1**k for k in range(30)])) == 0


@pytest.mark.parametrize(("loss", "knows"), [(0.4, True), (1.3, True), (1.9, False), (2.4, False), (-1.2, False)])
def test_who_begins_far_below_a_guess_has_been_trained_before(make_log, loss, knows):
    assert trained(make_log(outputs(2.3, loss=loss))) is knows
    assert not trained(make_log({"loss": np.full(5, loss)}))
