import math

import numpy as np
import pytest
import torch

from dynaxx.numerics.trajectory import channel, gram, principal, random_walk, straightness


@pytest.mark.parametrize("hold", [1, 3, 7])
def test_inner_products_are_exact_and_few_are_held(hold):
    torch.manual_seed(0)
    vectors = torch.randn(7, 50, dtype=torch.float64)
    reads = []

    def load(i):
        reads.append(i)
        return [vectors[i, :20], vectors[i, 20:].reshape(5, 6)]

    found = gram(load, 7, hold=hold)
    np.testing.assert_allclose(found, (vectors @ vectors.T).numpy(), rtol=1e-12)
    blocks = math.ceil(7 / hold)
    assert len(reads) == sum(7 - first for first in range(0, 7, hold))
    assert blocks == 1 or len(reads) > 7


def test_components_are_those_of_a_singular_value_decomposition():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(9, 4)) * [5, 2, 1, 0.1] + 100
    parts = principal(points @ points.T)
    left, values, right = np.linalg.svd(points - points.mean(0), full_matrices=False)
    np.testing.assert_allclose(parts.variances, values**2, rtol=1e-6)
    np.testing.assert_allclose(np.abs(parts.coordinates), np.abs(left * values), atol=1e-5)
    directions = parts.weights.T @ (points - points.mean(0))
    np.testing.assert_allclose(np.abs(directions @ right.T), np.eye(4), atol=1e-4)
    assert parts.explained.sum() == pytest.approx(1)


def test_even_variance_in_three_directions_has_effective_dimension_three():
    points = np.vstack([np.eye(3), -np.eye(3)])
    assert principal(points @ points.T).participation == pytest.approx(3)


def test_the_null_has_the_spectrum_of_a_random_walk():
    """n points with unit steps in many dimensions: λₖ = 1 / (4 sin²(πk/2n)), two thirds in the first components."""
    n = 60
    line = np.arange(n)[:, None].astype(float)
    null = principal(random_walk(line @ line.T, [list(range(n))]))
    k = np.arange(1, n)
    np.testing.assert_allclose(null.variances, 1 / (4 * np.sin(np.pi * k / (2 * n)) ** 2), rtol=1e-8)
    assert null.explained[0] == pytest.approx(6 / math.pi**2, abs=0.01)


def test_the_null_is_met_by_walks_in_many_dimensions():
    rng = np.random.default_rng(1)
    n, d = 30, 40_000
    start = rng.normal(size=d) / math.sqrt(d)
    walks = [start + np.vstack([np.zeros(d), rng.normal(size=(n - 1, d)).cumsum(0) / math.sqrt(d)]) for _ in range(2)]
    points = np.vstack(walks)
    runs = [list(range(n)), list(range(n, 2 * n))]
    products = points @ points.T
    found, null = principal(products), principal(random_walk(products, runs))
    np.testing.assert_allclose(found.explained[:4], null.explained[:4], rtol=0.05)
    assert found.participation == pytest.approx(null.participation, rel=0.05)
    assert abs(straightness(products, runs[0])) < 0.01
    steps = list(zip(*runs, strict=True))
    one, two = channel(products, steps), channel(random_walk(products, runs), steps)
    assert one.across == pytest.approx(two.across, rel=0.05)
    assert one.drift == pytest.approx(two.drift, rel=0.05)


def test_a_straight_line_is_straight():
    line = np.arange(5)[:, None] * np.array([[1.0, 2.0]])
    assert straightness(line @ line.T, range(5)) == pytest.approx(1)
    assert math.isnan(straightness(np.zeros((3, 3)), range(3)))


def test_a_funnel_is_a_channel():
    """Two runs at x = t, y = ±2^{−t}: drift 2 from t = 2 to 4, spread 1/16 at the end, 1/4 at the middle."""
    t = np.arange(5.0)
    points = np.vstack([np.stack([t, s * 2.0**-t], 1) for s in (1, -1)])
    found = channel(points @ points.T, [[i, i + 5] for i in range(5)])
    assert found.drift == pytest.approx(2)
    assert found.across == pytest.approx(1 / 16)
    assert found.across_before == pytest.approx(1 / 4)
    assert found.along == pytest.approx(0, abs=1e-7)
    assert found.contraction == pytest.approx(1 / 4)
    assert found.ratio == pytest.approx(32)
    np.testing.assert_allclose(found.position[:5], t - 2, atol=1e-12)
    shifted = points + 7  # of differences from another reference
    again = channel(shifted @ shifted.T, [[i, i + 5] for i in range(5)])
    assert again.across == pytest.approx(found.across)
    np.testing.assert_allclose(again.position, found.position, atol=1e-9)
