import math

import numpy as np
import pytest

from dynaxx.detectors._doubt import scatter, weigh_doubt
from dynaxx.detectors._weigh import Suspect

SIZE = 64


@pytest.fixture
def run(make_log, rng):
    def run(losses, classes=10, size=SIZE, dropout=None):
        manifest = {} if dropout is None else {"model": {"layers": [], "dropout": dropout}}
        return make_log(
            {
                "loss": losses,
                "outputs.width": np.full(len(losses), float(classes)),
                "effective_batch": np.full(len(losses), float(size)),
            },
            manifest=manifest,
        )

    return run


def doubter(rng, sure, classes=10, size=SIZE, steps=4000):
    """Batch losses of a model that gives `sure` to one class, evenly the rest to the others, and is right as often."""
    right = rng.random((steps, size)) < sure
    return np.where(right, -math.log(sure), -math.log((1 - sure) / (classes - 1))).mean(axis=1)


def weighed(log):
    strong, noisy = Suspect("regularisation_too_strong", 0.5), Suspect("label_noise", 0.5)
    weigh_doubt(log, strong, noisy)
    return strong.confidence, noisy.confidence


@pytest.mark.parametrize("sure", [0.4, 0.6, 0.9])
def test_a_calibrated_doubter_scatters_as_the_formula_says(run, rng, sure):
    ratios = [scatter(run(doubter(rng, sure)[start : start + 160])) for start in range(0, 4000, 160)]
    assert np.mean(ratios) == pytest.approx(1, abs=0.1), "these losses are whole multiples of one number"
    assert scatter(run(doubter(rng, sure, classes=2), classes=2)) == pytest.approx(1, abs=0.2)


def test_what_is_spread_over_each_example_scatters_less(run, rng):
    mean = doubter(rng, 0.6).mean()
    assert scatter(run(mean + 0.05 * rng.standard_normal(400))) < 0.5


def test_contradicting_labels_and_dropout_are_told_apart(run, rng):
    strong, noisy = weighed(run(doubter(rng, 0.6)[:400]))
    assert noisy == pytest.approx(0.8)
    assert strong < 0.3
    strong, noisy = weighed(run(doubter(rng, 0.6)[:400] * 0.6 + 0.4 * 1.5))
    assert noisy < 0.4 < strong


def test_the_manifest_says_whether_the_model_drops(run):
    flat = np.full(400, 1.5)
    assert weighed(run(flat, dropout={"1": 0.9}))[0] > 0.8
    assert weighed(run(flat, dropout={}))[0] < 0.2
    assert weighed(run(flat)) == (0.5, 0.5), "nothing is known"


def test_no_classifier_or_a_short_run_says_nothing(run, rng):
    assert scatter(run(doubter(rng, 0.6)[:100])) is None
    assert scatter(run(np.full(400, 3.0))) is None, "worse than a guess"
