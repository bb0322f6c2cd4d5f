"""The tail index on stable samples of known index, and the Gaussian noise that must not be called heavy-tailed."""

import numpy as np
import pytest
from scipy.stats import levy_stable

from dynaxx.errors import BadInput
from dynaxx.numerics.tail_index import judged, tail_index


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
