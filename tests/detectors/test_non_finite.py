import numpy as np
import pytest

from dynaxx.detectors.non_finite import NonFinite
from dynaxx.errors import NotApplicable

LAYERS = ("a", "b", "c")


def columns(rng, steps=200):
    return {
        "loss": 1 + 0.01 * rng.standard_normal(steps),
        "grad_norm": (np.arange(1, steps + 1), np.exp(0.1 * rng.standard_normal((steps, 3))), LAYERS),
        "activations.std": (np.arange(1, steps + 1), np.ones((steps, 3)), LAYERS),
        "parameter_norm": (np.arange(10, steps + 1, 10), np.ones((steps // 10, 3)), LAYERS),
    }


def test_finite_runs_are_silent(make_log, rng):
    assert NonFinite().detect(make_log(columns(rng))) is None


def test_one_bad_batch_is_left_behind(make_log, rng):
    log = columns(rng)
    log["loss"][99] = np.nan
    log["grad_norm"][1][99] = np.nan
    found = NonFinite().detect(make_log(log))
    assert found.severity == "warning"
    assert found.onset == 100
    assert found.causes[0].name in ("non_finite_data", "corrupted_batch")
    assert any(r.action is not None and r.action.name == "skip" for r in found.causes[0].remedies)


def test_outputs_that_have_no_norm_are_not_called_infinite(make_log, rng):
    log = {**columns(rng), "logit_norm": np.full(200, np.nan)}  # a regression with outputs of shape (batch,)
    assert NonFinite().detect(make_log(log)) is None
    log["loss"][99] = np.nan
    assert NonFinite().detect(make_log(log)).onset == 100
    log["loss"][:] = np.nan
    assert "step 1 on: began in the outputs" in NonFinite().detect(make_log(log)).title


def test_it_names_where_it_began(make_log, rng):
    log = columns(rng)
    log["activations.std"][1][149:, 1:] = np.nan
    log["loss"][149:] = np.nan
    log["grad_norm"][1][149:] = np.nan
    log["parameter_norm"][1][15:] = np.nan
    found = NonFinite().detect(make_log(log))
    assert found.severity == "critical"
    assert "the forward pass of b, c" in found.title
    assert found.layers == ("b", "c")
    assert found.test.check == "non_finite_origin"


def test_a_run_that_blew_up_accuses_the_rate(make_log, rng):
    log = columns(rng)
    log["grad_norm"][1][140:150] *= np.geomspace(2, 1e6, 10)[:, None]
    log["loss"][150:] = np.inf
    log["grad_norm"][1][150:] = np.inf
    found = NonFinite().detect(make_log(log))
    assert found.causes[0].name == "learning_rate_too_high"


def test_the_input_itself(make_log, rng):
    log = columns(rng)
    log["loss"][99] = np.nan
    counts = np.zeros(200)
    counts[99] = 7
    found = NonFinite().detect(make_log({**log, "inputs.nonfinite": counts}))
    assert found.causes[0].name == "non_finite_data"
    assert found.causes[0].confidence > 0.8


def test_a_live_check_of_the_origin_decides(make_log, rng):
    log = columns(rng)
    log["loss"][99] = np.nan
    event = {"kind": "check", "step": 100, "name": "non_finite_origin", "values": {"stage": "input"}}
    assert NonFinite().detect(make_log(log, events=[event])).causes[0].confidence > 0.8


def test_an_entry_that_never_applied_is_no_alarm(make_log, rng):
    log = columns(rng)
    log["activations.std"][1][:, 2] = np.nan
    assert NonFinite().detect(make_log(log)) is None


def test_a_scaler_that_leaves_updates_out_does_its_work(make_log, rng):
    log = columns(rng)
    log["grad_norm"][1][50] = np.inf
    found = NonFinite().detect(make_log({**log, "precision.loss_scale": np.full(200, 65536.0)}))
    assert found.severity == "note"


def test_no_rows(make_log):
    with pytest.raises(NotApplicable, match="no row"):
        NonFinite().detect(make_log({"loss": np.empty(0)}))
