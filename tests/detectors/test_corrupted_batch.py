import numpy as np
import pytest

from dynaxx.detectors.corrupted_batch import CorruptedBatch
from dynaxx.errors import NotApplicable

STEPS = 120


@pytest.fixture
def columns(rng):
    def columns(at=(), factor=1.0, nonfinite=(), loss_at=1.0):
        largest, loss, broken = rng.lognormal(0, 0.1, STEPS), rng.lognormal(0, 0.1, STEPS), np.zeros(STEPS)
        largest[list(at)] *= factor
        loss[list(at)] *= loss_at
        broken[list(nonfinite)] = 0.01
        return {"inputs.max": largest, "inputs.std": largest / 3, "inputs.nonfinite": broken, "loss": loss}

    return columns


def test_a_batch_of_another_scale_that_hurts_is_found_at_its_step(make_log, columns):
    found = CorruptedBatch().detect(make_log(columns([70], 100.0, loss_at=20.0)))
    assert found.spans == ((71, 71),)
    assert found.severity == "warning"
    assert found.evidence[0].value == pytest.approx(100, rel=0.4)
    assert found.causes[0].name == "corrupted_batch"
    assert found.causes[0].remedies[0].action.arguments == {"when": "outlier"}


def test_one_that_does_not_hurt_is_a_note(make_log, columns):
    assert CorruptedBatch().detect(make_log(columns([70], 100.0))).severity == "note"


def test_heavy_tails_and_doubled_scales_are_not(make_log, columns, rng):
    assert CorruptedBatch().detect(make_log(columns([70], 2.0))) is None
    tails = columns() | {"inputs.max": np.exp(0.5 * rng.standard_t(4, STEPS))}
    assert CorruptedBatch().detect(make_log(tails)) is None


def test_a_shift_that_stays_is_no_corruption(make_log, columns):
    found = CorruptedBatch().detect(make_log(columns(range(80, STEPS), 50.0)))
    assert found.causes[0].name == "data_shift"
    assert found.spans == ((81, STEPS),)


def test_values_that_are_not_finite_are_critical(make_log, columns):
    found = CorruptedBatch().detect(make_log(columns(nonfinite=[10, 50])))
    assert found.severity == "critical"
    assert found.spans == ((11, 11), (51, 51))
    assert found.causes[0].name == "non_finite_data"


def test_few_batches_are_not_applicable(make_log):
    with pytest.raises(NotApplicable, match="30"):
        CorruptedBatch().detect(make_log({"inputs.max": np.ones(9), "inputs.nonfinite": np.zeros(9)}))
