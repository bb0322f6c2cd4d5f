import numpy as np
import pytest

from dynaxx.detectors.repeated_batch import RepeatedBatch
from dynaxx.errors import NotApplicable

STEPS = 96
PASS = 24


def columns(marks, epochs=True):
    found = {"inputs.fingerprint": marks}
    return found | ({"epoch": np.arange(1, STEPS + 1) / PASS} if epochs else {})


def test_three_batches_over_and_over_within_a_pass_are_found(make_log):
    found = RepeatedBatch().detect(make_log(columns(np.tile([1.5, 2.5, 3.5], STEPS // 3))))
    assert found.severity == "warning"
    assert found.evidence[0].value == pytest.approx(3 / PASS)
    assert found.causes[0].name == "repeated_batch"


def test_a_fixed_order_repeats_across_passes_and_is_no_finding(make_log, rng):
    assert RepeatedBatch().detect(make_log(columns(np.tile(rng.random(PASS), STEPS // PASS)))) is None
    assert RepeatedBatch().detect(make_log(columns(rng.random(STEPS)))) is None


def test_without_epochs_a_small_data_set_looks_alike_and_it_is_a_note(make_log):
    found = RepeatedBatch().detect(make_log(columns(np.tile([1.5, 2.5, 3.5], STEPS // 3), epochs=False)))
    assert found.severity == "note"


def test_full_batch_descent_has_passes_of_one_step(make_log):
    full = {"inputs.fingerprint": np.full(STEPS, 1.5), "epoch": np.arange(1, STEPS + 1, dtype=float)}
    with pytest.raises(NotApplicable, match="one pass"):
        RepeatedBatch().detect(make_log(full))
