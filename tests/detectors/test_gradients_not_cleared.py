import numpy as np
import pytest

from dynaxx.detectors.gradients_not_cleared import GradientsNotCleared
from dynaxx.errors import NotApplicable

STEPS = 100
SIZE = 400


def columns(gradients):
    """What the signals log of gradients of shape (steps, size) in two equal layers."""
    norms = np.linalg.norm(gradients.reshape(STEPS, 2, -1), axis=2)
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    cosine = np.einsum("ij,ij->i", unit[1:], unit[:-1])
    return {"grad_norm": norms, "gradient_agreement": (range(2, STEPS + 1), cosine)}


def test_a_running_sum_of_independent_gradients_is_found(make_log, rng):
    found = GradientsNotCleared().detect(make_log(columns(rng.normal(size=(STEPS, SIZE)).cumsum(0))))
    assert found.severity == "warning"
    assert found.spans[-1][1] == STEPS
    assert found.causes[0].name == "gradients_not_cleared"


def test_gradients_that_are_cleared_are_not(make_log, rng):
    noise = rng.normal(size=(STEPS, SIZE))
    assert GradientsNotCleared().detect(make_log(columns(noise))) is None
    # Full batch in a smooth valley: the cosine is as high, the norm falls.
    valley = np.geomspace(1, 0.01, STEPS)[:, None] * (1 + 0.05 * noise)
    assert GradientsNotCleared().detect(make_log(columns(valley))) is None


def test_leaving_a_plateau_is_not(make_log, rng):
    scale = np.where(np.arange(STEPS) < 25, np.geomspace(0.01, 1, STEPS), 1.0)[:, None]
    gradients = np.where(np.arange(STEPS)[:, None] < 25, 1.0, 0.0) + 0.2 * rng.normal(size=(STEPS, SIZE))
    gradients[25:] = rng.normal(size=(STEPS - 25, SIZE))
    assert GradientsNotCleared().detect(make_log(columns(scale * gradients))) is None


def noise_scale(batch):
    """One batch's squared norm is SIZE: all of it noise, of examples with the variance `batch`."""
    return {
        "effective_batch": np.full(STEPS, float(batch)),
        "gradient_noise.trace": ([48, 96], [SIZE * batch, SIZE * batch]),
        "gradient_noise.gradient": ([48, 96], [0.0, 0.0]),
    }


def test_the_size_of_one_batchs_gradient_decides(make_log, rng):
    summed = columns(rng.normal(size=(STEPS, SIZE)).cumsum(0))
    found = GradientsNotCleared().detect(make_log(summed | noise_scale(32)))
    assert found.severity == "critical"
    assert found.evidence[-1].value == pytest.approx((48 + 96) / 2, rel=0.2), "a sum of t has t times the square"
    growing = np.geomspace(1, 10, STEPS)[:, None] * np.ones((1, SIZE)) / 10
    assert GradientsNotCleared().detect(make_log(columns(growing) | noise_scale(32))) is None


def test_what_the_optimizer_does_not_hold_adds_up_and_is_another_matter(make_log, rng):
    held, left = rng.normal(size=(STEPS, SIZE // 2)), 5 * rng.normal(size=(STEPS, SIZE // 2)).cumsum(0)
    updates = {"update_norm": np.tile([1e-3, 0.0], (STEPS, 1))}
    log = make_log(columns(np.concatenate([held, left], axis=1)) | updates)
    assert GradientsNotCleared().detect(log) is None


def test_sparse_measurements_are_not_applicable(make_log):
    sparse = {"grad_norm": np.ones((STEPS, 2)), "gradient_agreement": (range(10, 810, 20), np.ones(40))}
    with pytest.raises(NotApplicable, match="consecutive"):
        GradientsNotCleared().detect(make_log(sparse))
