"""Gradient noise against problems whose covariance and mean gradient are known."""

import math

import numpy as np
import pytest
import torch

from dynaxx.errors import BadInput
from dynaxx.numerics.gradient_noise import agreement, averaged, cancellation, noise_scale, scale_of, unbiased


def draws(theta, sigma, dimension, small, big, count, seed):
    """‖g_b‖² and ‖g_B‖² for L = ½ E‖θ − x‖², x ~ N(0, σ² I): the gradient of a batch is θ minus its mean."""
    rng = np.random.default_rng(seed)
    point = np.zeros(dimension)
    point[0] = theta
    found = [
        np.sum(np.square(point - sigma * rng.standard_normal((count, dimension)) / math.sqrt(n)), axis=1)
        for n in (small, big)
    ]
    return found[0], found[1]


def test_the_scale_of_a_quadratic_is_its_closed_form():
    """B = d σ² / ‖θ‖² = 20 · 1 / 5 = 4, with batches of 8 and 64 as in the known figure 3.9986."""
    small, big = draws(math.sqrt(5), 1.0, 20, 8, 64, 40_000, seed=0)
    found = noise_scale(small, big, 8, 64)
    assert found.scale == pytest.approx(4.0, rel=0.01)
    assert found.low < 4.0 < found.high
    assert found.high - found.low < 0.15
    assert found.trace.value == pytest.approx(20, abs=4 * found.trace.error)
    assert found.gradient.value == pytest.approx(5, abs=4 * found.gradient.error)


def test_the_mean_of_ratios_would_be_biased():
    """Why numerator and denominator are averaged first."""
    small, big = draws(math.sqrt(5), 1.0, 20, 8, 64, 40_000, seed=0)
    trace, gradient = unbiased(small, big, 8, 64)
    assert abs(np.mean(trace / gradient) - 4.0) > 10 * abs(noise_scale(small, big, 8, 64).scale - 4.0)


@pytest.mark.parametrize(("theta", "count"), [(math.sqrt(5), 12), (0.6, 12), (0.3, 40)])
def test_the_interval_covers_as_often_as_it_says(theta, count):
    """Also where ‖G‖² is drowned in noise: there it has no upper end."""
    hit, open_ended = 0, 0
    for seed in range(400):
        small, big = draws(theta, 1.0, 20, 2, 16, count, seed=seed)
        found = noise_scale(small, big, 2, 16)
        hit += found.low <= 20 / theta**2 <= found.high
        open_ended += math.isinf(found.high)
    assert 0.92 <= hit / 400 <= 0.995
    if theta == 0.3:
        assert open_ended > 200


def test_one_draw_bounds_nothing():
    found = noise_scale(np.array([3.0]), np.array([1.5]), 1, 4)
    assert (found.scale, found.low, found.high, found.trace.error) == (2.0, 0.0, math.inf, None)


def test_no_signal_is_an_infinite_scale():
    assert math.isinf(noise_scale(np.array([4.0, 4.0]), np.array([0.9, 0.9]), 1, 4).scale)


@pytest.mark.parametrize(("small", "big"), [(4, 4), (8, 4), (0, 4)])
def test_batch_sizes_must_differ(small, big):
    with pytest.raises(BadInput, match="0 < b < B"):
        unbiased(1.0, 1.0, small, big)


def test_the_running_mean_is_the_plain_mean_until_its_memory_is_full():
    small, big = draws(math.sqrt(5), 1.0, 20, 2, 16, 30, seed=3)
    state = None
    for s, b in zip(small, big, strict=True):
        trace, gradient = unbiased(torch.tensor(s), torch.tensor(b), 2, 16)
        state = averaged(state, trace, gradient, memory=50)
    scale, error = scale_of(state)
    found = noise_scale(small, big, 2, 16)
    assert float(scale) == pytest.approx(found.scale, rel=1e-12)
    trace, gradient = unbiased(small, big, 2, 16)
    ratio = trace - found.scale * gradient  # the linearised error of a ratio
    truth = ratio.std(ddof=1) / math.sqrt(30) / trace.mean()
    assert float(error) == pytest.approx(truth, rel=1e-6)


def test_the_running_mean_forgets():
    state = None
    for value in [100.0] * 20 + [2.0] * 100:
        state = averaged(state, torch.tensor(value), torch.tensor(1.0), memory=10)
    assert float(scale_of(state)[0]) == pytest.approx(2.0, rel=0.01)
    assert float(state["share"]) == pytest.approx(1 / (2 * 10 - 1), rel=1e-6)  # an effective number of 2·memory − 1


def test_a_single_measurement_has_no_error():
    scale, error = scale_of(averaged(None, torch.tensor(8.0), torch.tensor(2.0), memory=10))
    assert float(scale) == 4.0
    assert math.isnan(float(error))


def test_a_mean_gradient_that_cannot_be_seen_is_an_infinite_scale():
    assert math.isinf(float(scale_of(averaged(None, torch.tensor(8.0), torch.tensor(-0.1), memory=10))[0]))


def test_agreement_is_that_of_all_pairs():
    gradients = torch.randn(6, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.4
    units = gradients / gradients.norm(dim=1, keepdim=True)
    pairs = units @ units.T
    found = agreement(iter(gradients))
    assert float(found.cosine) == pytest.approx(float((pairs.sum() - 6) / 30), rel=1e-12)
    assert float(found.mean_square) == pytest.approx(float(gradients.square().sum(1).mean()), rel=1e-12)
    assert float(found.square_of_mean) == pytest.approx(float(gradients.mean(0).square().sum()), rel=1e-12)
    assert float(found.diversity) == pytest.approx(
        float(gradients.square().sum() / gradients.sum(0).square().sum()), rel=1e-12
    )


def test_equal_gradients_agree_and_are_not_written_to():
    gradient = torch.tensor([3.0, 4.0])
    found = agreement([gradient] * 4)
    assert float(found.cosine) == pytest.approx(1.0)
    assert float(found.diversity) == pytest.approx(0.25)
    assert gradient.tolist() == [3.0, 4.0]


def test_one_gradient_agrees_with_nothing():
    with pytest.raises(BadInput, match="at least two"):
        agreement([torch.ones(2)])


@pytest.mark.parametrize(("changes", "truth"), [([-1.0, -2.0], 0.0), ([1.0, -1.0], 1.0), ([-3.0, 1.0], 0.5)])
def test_cancellation(changes, truth):
    assert float(cancellation(torch.tensor(changes))) == truth
