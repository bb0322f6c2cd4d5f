import numpy as np
import pytest

from dynaxx.detectors.clipping_always_on import ClippingAlwaysOn
from dynaxx.errors import NotApplicable

STEPS = 600


@pytest.fixture
def run(make_log, facts_of, rng):
    def run(share, size=0.5, optimizer="SGD", loss=(2.3, 2.2), gradient=1.0):
        clipped = rng.random(STEPS) < share
        columns = {
            "clip_coefficient": np.where(clipped, size, 1.0),
            "loss": np.geomspace(*loss, STEPS),
            "grad_norm": np.broadcast_to(gradient, (STEPS,))[:, None],
        }
        return make_log(columns, manifest=facts_of(1, optimizer))

    return run


def test_more_than_half_is_found_and_is_a_note(run):
    found = ClippingAlwaysOn().detect(run(0.8))
    assert found.severity == "note"
    assert found.evidence[0].value == pytest.approx(0.8, abs=0.05)


def test_a_third_is_not(run):
    assert ClippingAlwaysOn().detect(run(0.33)) is None


def test_it_alarms_where_clipping_sets_the_steps(run):
    assert ClippingAlwaysOn().detect(run(1.0, size=0.01)).severity == "warning"
    assert ClippingAlwaysOn().detect(run(1.0, size=0.01, optimizer="AdamW")).severity == "note"
    assert ClippingAlwaysOn().detect(run(1.0, size=0.01, loss=(2.3, 0.1))).severity == "note"


def test_growing_norms_point_at_the_rate(run):
    assert ClippingAlwaysOn().detect(run(1.0)).causes[0].name == "clipping_too_tight"
    growing = ClippingAlwaysOn().detect(run(1.0, gradient=np.geomspace(1, 100, STEPS), loss=(2.3, 1.0)))
    assert growing.causes[0].name == "learning_rate_too_high"


def test_a_short_log_is_not_applicable(make_log):
    with pytest.raises(NotApplicable, match="200"):
        ClippingAlwaysOn().detect(make_log({"clip_coefficient": np.zeros(150)}))
