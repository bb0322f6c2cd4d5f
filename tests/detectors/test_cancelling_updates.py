import numpy as np
import pytest

from dynaxx.detectors.cancelling_updates import CancellingUpdates
from dynaxx.errors import NotApplicable

STEPS = 100


def cancellation(changes):
    return 1 - np.abs(changes.sum(axis=1)) / np.abs(changes).sum(axis=1)


def test_two_halves_that_undo_each_other_are_found(make_log, rng):
    changes = rng.lognormal(0, 0.2, (STEPS, 6)) * np.tile([1, -1], 3)
    found = CancellingUpdates().detect(
        make_log({"gradient_agreement.cancellation": cancellation(changes), "loss": np.geomspace(1, 3, STEPS)})
    )
    assert found.severity == "warning"
    assert found.evidence[0].value > 0.8


def test_independent_signs_of_few_layers_and_descent_are_not(make_log, rng):
    random = rng.normal(size=(STEPS, 5))
    assert CancellingUpdates().detect(make_log({"gradient_agreement.cancellation": cancellation(random)})) is None
    descent = -np.abs(random)
    assert CancellingUpdates().detect(make_log({"gradient_agreement.cancellation": cancellation(descent)})) is None


def test_it_is_a_note_while_the_loss_falls_and_the_cosine_ranks_the_causes(make_log):
    columns = {"gradient_agreement.cancellation": np.full(STEPS, 0.9), "loss": np.geomspace(3, 1, STEPS)}
    agree = CancellingUpdates().detect(make_log(columns | {"gradient_agreement": np.full(STEPS, 0.6)}))
    assert agree.severity == "note"
    assert agree.causes[0].name == "cancelling_updates"
    noise = CancellingUpdates().detect(make_log(columns | {"gradient_agreement": np.full(STEPS, 0.0)}))
    assert noise.causes[0].name == "noise_floor"
    turning = CancellingUpdates().detect(make_log(columns | {"gradient_agreement": np.full(STEPS, -0.5)}))
    assert turning.causes[0].name == "momentum_too_high"


def test_a_short_log_is_not_applicable(make_log):
    with pytest.raises(NotApplicable, match="rows"):
        CancellingUpdates().detect(make_log({"gradient_agreement.cancellation": np.ones(3)}))
