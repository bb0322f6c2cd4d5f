import numpy as np
import pytest

from dynaxx.detectors.unshuffled_data import UnshuffledData
from dynaxx.errors import NotApplicable

STEPS = 400
PASS = 25


@pytest.fixture
def columns(rng):
    def columns(pattern, own=0.3, **more):
        """A loss that falls, with a part of the epoch's and noise of each step's own."""
        epochs = np.tile(pattern, STEPS // PASS)
        loss = np.geomspace(2, 0.5, STEPS) * np.exp(epochs + own * rng.normal(size=STEPS))
        return {"loss": loss, "epoch": np.arange(1, STEPS + 1) / PASS, **more}

    return columns


def test_a_saw_tooth_is_sorted_data(make_log, columns):
    found = UnshuffledData().detect(make_log(columns(np.linspace(-1, 1, PASS))))
    assert found.severity == "warning"
    assert found.evidence[0].value > 0.6
    assert f"{PASS} steps" in found.evidence[0].text
    assert found.causes[0].name == "unshuffled_data"


def test_the_same_order_of_mixed_batches_is_a_note(make_log, columns, rng):
    found = UnshuffledData().detect(make_log(columns(rng.normal(size=PASS))))
    assert found.severity == "note"
    assert "repeats every 25" in found.title


def test_shuffled_data_are_no_finding(make_log, columns):
    for _ in range(20):
        assert UnshuffledData().detect(make_log(columns(np.zeros(PASS)))) is None


def test_a_slow_swing_that_is_not_the_epochs_is_no_finding(make_log, columns):
    waves = columns(np.zeros(PASS))
    waves["loss"] *= np.exp(np.sin(np.arange(STEPS) * 2 * np.pi / (PASS * 1.5)))
    assert UnshuffledData().detect(make_log(waves)) is None


def test_batches_of_one_class_by_turns_are_sorted(make_log, rng):
    outputs = {"outputs.width": np.full(100, 10.0), "loss": rng.lognormal(0, 0.1, 100)}
    turns = {"outputs.top_share": np.full(100, 0.9), "outputs.top_class": np.arange(100) % 10}
    assert UnshuffledData().detect(make_log(outputs | turns)).severity == "warning"
    imbalance = {"outputs.top_share": np.full(100, 0.9), "outputs.top_class": np.zeros(100)}
    assert UnshuffledData().detect(make_log(outputs | imbalance)) is None
    mixed = {"outputs.top_share": np.full(100, 0.2), "outputs.top_class": np.arange(100) % 10}
    assert UnshuffledData().detect(make_log(outputs | mixed)) is None


def test_few_batches_that_return_are_another_matter(make_log, columns):
    marks = {"inputs.fingerprint": np.tile([1.5, 2.5], STEPS // 2)}
    assert UnshuffledData().detect(make_log(columns(np.linspace(-1, 1, PASS), **marks))) is None


def test_a_single_pass_is_not_applicable(make_log):
    with pytest.raises(NotApplicable, match="two epochs"):
        UnshuffledData().detect(make_log({"loss": np.ones(100), "epoch": np.arange(1, 101) / 1000}))


def test_what_repeats_once_and_not_again_is_chance(make_log, columns):
    log = columns(np.zeros(PASS), own=0.01)
    log["loss"] = log["loss"][: 6 * PASS] * np.exp(np.sin(np.arange(6 * PASS) ** 1.02 * 2 * np.pi / PASS * 0.75) * 0.5)
    log["epoch"] = log["epoch"][: 6 * PASS]
    assert UnshuffledData().detect(make_log(log)) is None


def test_a_wave_that_is_the_epochs_for_two_passes_is_no_order(make_log, columns):
    """The period drifts from the epoch's by a fifth in each pass: alike one pass apart, unlike three apart."""
    waves = columns(np.zeros(PASS), own=0.05)
    waves["loss"] *= np.exp(np.sin(np.arange(STEPS) * 2 * np.pi / (PASS * 1.1)))
    found = UnshuffledData().detect(make_log(waves))
    assert found is None
    steady = columns(np.sin(np.arange(PASS) * 2 * np.pi / PASS), own=0.05)
    assert UnshuffledData().detect(make_log(steady)).severity == "warning"
