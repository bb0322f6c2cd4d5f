import numpy as np
import pytest

from dynaxx.detectors.noise_dominated import NoiseDominated
from dynaxx.errors import NotApplicable

STEPS = 200
AT = [48, 96, 144, 192]


def columns(scale, batch=32.0, error=0.2, loss=(2.3, 1.0), cosine=0.0):
    return {
        "gradient_noise": (AT, np.broadcast_to(scale, (4,))),
        "gradient_noise.error": (AT, np.full(4, error)),
        "effective_batch": np.full(STEPS, batch),
        "loss": np.geomspace(*loss, STEPS),
        "gradient_agreement": np.full(STEPS, cosine),
    }


def test_a_batch_far_below_the_noise_scale_is_a_note(make_log):
    found = NoiseDominated().detect(make_log(columns(3200.0)))
    assert found.severity == "note"
    assert found.evidence[0].value == pytest.approx(100)
    assert found.causes[0].name == "batch_too_small"


def test_a_batch_far_above_it_wastes_examples(make_log):
    found = NoiseDominated().detect(make_log(columns(2.0)))
    assert found.severity == "note"
    assert found.causes[0].name == "batch_too_large"


@pytest.mark.parametrize("scale", [32.0, 500.0, 8.0, [3200.0, 300.0, 3200.0, 3200.0]])
def test_batches_near_it_or_measurements_that_disagree_are_no_finding(make_log, scale):
    assert NoiseDominated().detect(make_log(columns(scale))) is None


def test_a_loss_that_stays_where_it_was_makes_it_an_alarm(make_log):
    found = NoiseDominated().detect(make_log(columns(3200.0, loss=(2.3, 2.3))))
    assert found.severity == "warning"
    assert {"batch_too_small", "noise_floor"} == {cause.name for cause in found.causes}


def test_uncertain_or_few_measurements_are_not_applicable(make_log):
    with pytest.raises(NotApplicable, match="3 needed"):
        NoiseDominated().detect(make_log(columns(3200.0, error=2.0)))
