"""The tail index on stable samples of known index, and the Gaussian noise that must not be called heavy-tailed."""

import numpy as np
import pytest
import torch
from scipy.stats import levy_stable

from dynaxx.errors import BadInput
from dynaxx.numerics.tail_index import judged, judged_pairs, tail_index


def stable(alpha, shape, seed):
    return levy_stable.rvs(alpha, 0.0, size=shape, random_state=np.random.default_rng(seed))


@pytest.mark.parametrize("alpha", [1.2, 1.5, 1.8, 2.0])
def test_known_indices_are_found_within_their_error(alpha):
    found = tail_index(stable(alpha, (100_000, 1), 0), block=300)
    assert found.value == pytest.approx(alpha, abs=4 * found.error)
    assert 0.005 < found.error < 0.08


@pytest.mark.parametrize("by", ["vector", "coordinate"])
def test_stable_vectors_of_unequal_scales(by):
    scales = np.exp(np.random.default_rng(1).standard_normal(30))
    found = judged(stable(1.5, (900, 30), 2) * scales, by=by, draws=60)
    assert found.alpha.value == pytest.approx(1.5, abs=0.25)
    assert found.p_value < 0.02


def flattened(noise):
    """The published estimator: all coordinates of all samples as one."""
    return tail_index(noise.reshape(-1, 1)).value


@pytest.mark.parametrize("by", ["vector", "coordinate"])
@pytest.mark.parametrize(("spread", "published"), [(0.5, 1.84), (1.0, 1.56), (2.0, 0.97)])
def test_gaussian_noise_of_unequal_scales_is_not_heavy_tailed(spread, published, by):
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((400, 500)) * np.exp(spread * rng.standard_normal(500))
    assert flattened(noise) == pytest.approx(published, abs=0.15)  # the trap is there
    found = judged(noise, by=by, draws=60)
    assert found.alpha.value == pytest.approx(2.0, abs=0.2)
    assert found.p_value > 0.02


def test_false_alarms_are_as_frequent_as_the_p_value_says():
    rng = np.random.default_rng(5)
    scales = np.exp(rng.standard_normal(20))
    p = np.array([judged(rng.standard_normal((64, 20)) * scales, draws=40, seed=i).p_value for i in range(200)])
    assert 0.02 < np.mean(p <= 0.1) < 0.18
    assert 0.4 < p.mean() < 0.62


def test_centred_noise_is_compared_with_centred_noise():
    rng = np.random.default_rng(6)
    p = []
    for i in range(100):
        noise = rng.standard_normal((36, 5))
        p.append(judged(noise - noise.mean(0), draws=40, seed=i).p_value)
    assert 0.38 < np.mean(p) < 0.62


def test_dead_coordinates_are_left_out():
    noise = stable(1.5, (900, 6), 7)
    noise[:, 3:] = 0
    assert tail_index(noise, by="coordinate").value == tail_index(noise[:, :3], by="coordinate").value
    noise[0, :] = 0
    with pytest.raises(BadInput, match="by='vector'"):
        tail_index(noise[:, :3], by="coordinate")


@pytest.mark.parametrize("noise", [np.ones((3, 2)), np.zeros((9, 2)), np.full((9, 2), np.nan)])
def test_what_cannot_be_judged_is_refused(noise):
    with pytest.raises(BadInput, match="tail_index"):
        tail_index(noise)


def by_gram(noise, **options):
    return [float(value) for value in judged_pairs(torch.tensor(noise @ noise.T), **options)]


def differences(gradients):
    return gradients[1::2] - gradients[::2]


def test_inner_products_say_what_the_vectors_do():
    rng = np.random.default_rng(7)
    noise = stable(1.5, (64, 30), 8) * np.exp(rng.standard_normal(30))
    signs = torch.randint(0, 2, (64,), generator=torch.Generator().manual_seed(4)).numpy() * 2 - 1
    alpha, null, p = by_gram(noise, draws=400, seed=4)
    truth = judged(noise * signs[:, None], draws=400)
    assert alpha == pytest.approx(truth.alpha.value, rel=1e-9)
    assert null == pytest.approx(truth.null.value, abs=4 * truth.null.error / 20)
    assert p == pytest.approx(truth.p_value, abs=0.05)


@pytest.mark.parametrize("change", ["none", "scales", "scale falls", "mean moves", "one direction"])
def test_gaussian_gradients_are_not_called_heavy_tailed(change):
    """Whatever else changes along the window; the p-value errs to the safe side where there are many directions."""
    rng = np.random.default_rng(9)
    n = 1 if change == "one direction" else 40
    scales = np.exp(2 * rng.standard_normal(n)) if change == "scales" else np.ones(n)
    time = np.arange(128)[:, None]
    p = []
    for i in range(100):
        gradients = rng.standard_normal((128, n)) * scales
        gradients = gradients * np.exp(-3 * time / 128) if change == "scale falls" else gradients
        gradients = gradients + time / 2 if change == "mean moves" else gradients
        p.append(by_gram(differences(gradients), draws=100, seed=i)[2])
    assert np.mean(np.array(p) <= 0.05) < 0.12
    assert np.mean(p) > 0.38


def test_heavy_gradients_are():
    """Sums of stable vectors, whose tails are those of whole gradients: 9 of 10 windows of 64 at α = 1.5."""
    found = []
    for i in range(40):
        common = levy_stable.rvs(0.75, 1.0, size=128, random_state=np.random.default_rng(i))  # α/2, positive
        noise = np.sqrt(common)[:, None] * np.random.default_rng(100 + i).standard_normal((128, 50))
        found.append(by_gram(differences(noise), draws=100, seed=i))
    alphas, _, p = np.array(found).T
    assert alphas.mean() == pytest.approx(1.5, abs=0.1)
    assert np.mean(p <= 0.01) > 0.7


def test_differences_that_share_a_gradient_would_cancel():
    """Why each gradient is in one pair only: sums of a chain of differences are the difference of its ends."""
    gradients = np.random.default_rng(10).standard_normal((65, 500))
    assert abs(1 / tail_index(np.diff(gradients, axis=0)).value) < 0.02  # of noise: 0.5
    assert tail_index(differences(np.random.default_rng(10).standard_normal((128, 500)))).value < 2.2


def test_inner_products_that_say_nothing():
    for bad in (np.zeros((16, 4)), np.full((16, 4), np.nan), np.diag(np.r_[0.0, np.ones(15)])):
        assert np.isnan(by_gram(bad)[::2]).all()
    with pytest.raises(BadInput, match="at least 2 blocks"):
        judged_pairs(torch.eye(3))
