import math

import numpy as np
import pytest
import torch

from dynaxx.errors import BadInput
from dynaxx.numerics.density import density
from dynaxx.numerics.operator import Dense


def wishart(d, n, spike=0.0):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 0] *= math.sqrt(1 + spike)
    return x.T @ x / n


def rotated(values, dtype=torch.float64):
    n = len(values)
    basis, _ = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    return Dense(((basis * values) @ basis.T).to(dtype))


def hessian_like(n=800):
    """Nine outliers, a bulk of both signs, and a third of exact zeros."""
    g = torch.Generator().manual_seed(2)
    bulk = 0.1 * torch.randn(n - 9 - n // 3, generator=g, dtype=torch.float64)
    return torch.cat([torch.linspace(5, 1.5, 9, dtype=torch.float64), bulk, torch.zeros(n // 3, dtype=torch.float64)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_marchenko_pastur(dtype):
    """§7.1.4, d = 200, N = 800: edges 0.2416 and 2.199 for the law's 0.25 and 2.25, and the law in between."""
    matrix = wishart(200, 800)
    truth = torch.linalg.eigvalsh(matrix)
    found = density(Dense(matrix.to(dtype)), probes=4, steps=30)
    for edge, value, law in ((found.lowest, truth[0], 0.25), (found.highest, truth[-1], 2.25)):
        assert edge.bound
        assert abs(edge.value - float(value)) <= edge.error + 1e-5
        assert edge.error < 1e-2
        assert edge.value == pytest.approx(law, abs=0.1)  # of an infinite matrix
    assert found.condition.value == pytest.approx(float(truth[-1] / truth[0]), rel=0.02)
    assert found.negative_mass.value == 0.0
    assert found.negative_mass.error < 1e-6
    grid = np.linspace(0.4, 2.1, 60)
    middle, error = found.smooth(grid, 0.1)
    law = np.sqrt((2.25 - grid) * (grid - 0.25)) / (2 * math.pi * 0.25 * grid)
    assert np.abs(middle - law).max() < 0.2
    assert error.max() < 0.1


def test_one_outlier_stands_where_baik_ben_arous_and_peche_say():
    """§7.1.4: t = 3, d = 1000, N = 4000: (1 + t)(1 + γ/t) = 4.333; the second stays at the edge, 2.25."""
    matrix = wishart(1000, 4000, spike=3.0)
    truth = torch.linalg.eigvalsh(matrix)
    found = density(Dense(matrix), probes=4, steps=40)
    assert found.nodes[-1] == pytest.approx(float(truth[-1]), rel=1e-9)
    assert found.nodes[-1] == pytest.approx(4.333, rel=0.05)
    assert found.nodes[-2] == pytest.approx(float(truth[-2]), rel=1e-3)
    assert found.nodes[-2] == pytest.approx(2.25, rel=0.03)
    outlier = found.weights[:, found.nodes > 3].sum(1)
    assert float(outlier.mean()) == pytest.approx(1 / 1000, abs=4 * float(outlier.std(ddof=1)) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_sum_to_one_and_moments_are_those_of_the_products(dtype):
    """Landscaper's weights sum to the number of steps; a density without reorthogonalisation loses its moments."""
    values = hessian_like()
    found = density(rotated(values, dtype), probes=5, steps=40)
    assert found.weights.shape == (5, len(found.nodes))
    assert found.weights.min() >= 0
    assert found.weights.sum(1) == pytest.approx(np.ones(5), rel=1e-9)
    assert found.products == 200
    assert found.check < (1e-4 if dtype == torch.float32 else 1e-10)
    assert len(np.unique(found.nodes.round(6)[-9:])) == 9  # no ghosts: every outlier once
    assert found.nodes[-9:] == pytest.approx(np.sort(values.numpy())[-9:], rel=1e-5)


def test_errors_are_calibrated_over_seeds():
    values = hessian_like()
    operator, truth = rotated(values), values.numpy()
    runs = [density(operator, probes=4, steps=20, seed=seed) for seed in range(60)]
    truths = {
        "m1": truth.mean(),
        "m2": (truth**2).mean(),
        "rank": np.abs(truth).sum() ** 2 / (truth**2).sum(),
        "negative": (truth < -1e-9).mean(),
    }
    for name, get in (
        ("m1", lambda r: r.moment(1)), ("m2", lambda r: r.moment(2)), ("rank", lambda r: r.effective_rank),
        ("negative", lambda r: r.negative_mass),
    ):  # fmt: skip
        found = [get(run) for run in runs]
        inside = np.mean([abs(e.value - truths[name]) < 3.18 * e.error for e in found])  # Student's, 3 degrees
        assert inside > 0.85, name
        assert np.mean([e.error for e in found]) < 0.7 * abs(truths[name]), name


def test_the_smoothed_density_is_within_its_band():
    values = hessian_like()
    grid, width = np.linspace(-0.5, 5.2, 80), 0.08
    truth = np.exp(-((values.numpy()[:, None] - grid) ** 2) / (2 * width**2)).mean(0) / (math.sqrt(2 * math.pi) * width)
    middle, error = density(rotated(values), probes=10, steps=30).smooth(grid, width)
    inside = np.abs(middle - truth) < 3 * error + 1e-6
    assert inside.mean() > 0.93
    area = (np.diff(grid) * (middle[1:] + middle[:-1]) / 2).sum()
    assert area == pytest.approx(1.0, abs=0.02)
    one, unknown = density(rotated(values), probes=1, steps=10).smooth(grid, width)
    assert np.isnan(unknown).all()
    assert np.isfinite(one).all()


def test_blocks_need_fewer_products_than_probes_one_by_one():
    """The nodes of all probes serve each: at equal products the fifth outlier is converged, alone it is not."""
    values = hessian_like()
    together = density(rotated(values), probes=4, steps=8)
    alone = density(rotated(values), probes=1, steps=8)
    truth = np.sort(values.numpy())[::-1]
    assert abs(together.nodes[-5] - truth[4]) < 0.1 * abs(alone.nodes[-5] - truth[4])


@pytest.mark.parametrize("n", [1, 2, 3, 7, 60])
def test_a_space_smaller_than_the_steps_is_exact(n):
    matrix = wishart(n, 2 * n + 1)
    truth = torch.linalg.eigvalsh(matrix).numpy()
    found = density(Dense(matrix), probes=4, steps=60, keep=n)
    assert found.products == n
    assert found.nodes == pytest.approx(truth, abs=1e-12)
    assert found.weights == pytest.approx(np.full((4, n), 1 / n))
    assert found.residuals.max() < 1e-12
    rest = matrix @ found.vectors.T - found.vectors.T * torch.tensor(found.nodes)
    assert float(rest.abs().max()) < 1e-12


def test_breakdown_ends_early_with_exact_quadrature():
    """Three distinct eigenvalues: the space of two probes is invariant after three steps."""
    values = torch.tensor([0.0] * 50 + [1.0] * 30 + [-4.0] * 20, dtype=torch.float64)
    found = density(rotated(values), probes=2, steps=60)
    assert found.products == 6
    assert sorted(set(found.nodes.round(9) + 0.0)) == [-4.0, 0.0, 1.0]
    share = found.negative_mass
    assert abs(share.value - 0.2) < 12.7 * share.error
    assert found.residuals.max() < 1e-12
    zero = density(Dense(torch.zeros(6, 6)))
    assert zero.nodes.tolist() == [0.0] * len(zero.nodes)
    assert (zero.effective_rank.value, zero.negative_mass.value) == (0.0, 0.0)


def test_kept_vectors_are_the_outermost_and_all_of_them_span_the_space():
    values = hessian_like()
    operator = rotated(values)
    few = density(operator, probes=3, steps=12, keep=2)
    assert few.vectors.shape == (4, 800)
    quotients = ((operator.matrix @ few.vectors.T) * few.vectors.T).sum(0)
    assert quotients.numpy() == pytest.approx(few.nodes[[0, 1, -2, -1]], abs=1e-10)
    every = density(operator, probes=3, steps=12, keep=36).vectors
    torch.testing.assert_close(every @ every.T, torch.eye(36, dtype=torch.float64), atol=1e-12, rtol=0)
    assert density(operator, probes=3, steps=12).vectors.shape == (0, 800)


def test_one_seed_one_result():
    operator = rotated(hessian_like(200), torch.float32)
    a, b, c = (density(operator, seed=seed, steps=20) for seed in (1, 1, 2))
    assert np.array_equal(a.nodes, b.nodes)
    assert np.array_equal(a.weights, b.weights)
    assert not np.array_equal(a.weights, c.weights)


def test_bad_input():
    with pytest.raises(BadInput, match="at least 1"):
        density(Dense(torch.eye(3)), probes=0)
    with pytest.raises(BadInput, match="not finite"):
        density(Dense(torch.full((3, 3), math.nan)))
    with pytest.raises(BadInput, match="more than 0"):
        density(Dense(torch.eye(3))).smooth(np.zeros(2), 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [8, 20, 60])
def test_zeros_do_not_count_as_negative(dtype, steps):
    """Nine tenths are zero; after 8 steps their nodes stand beside zero, by less than their residuals."""
    values = torch.tensor(np.r_[np.zeros(540), np.logspace(-5, 1, 60)])
    for seed in range(3):
        assert density(rotated(values, dtype), steps=steps, seed=seed).negative_mass.value == 0.0


@pytest.mark.parametrize("steps", [8, 20, 60])
def test_negative_mass_beside_many_zeros_is_within_its_error(steps):
    """20 of 600 are negative, 520 zero: taken by the sign of their nodes, zeros made that up to a half."""
    values = torch.tensor(np.r_[np.zeros(520), np.logspace(-5, 1, 60), -np.logspace(-4, -1, 20)])
    for seed in range(3):
        found = density(rotated(values), steps=steps, seed=seed).negative_mass
        assert abs(found.value - 20 / 600) <= max(found.error, 1e-12)
        assert found.value < 0.05


def test_negative_mass_of_a_spectrum_without_zeros_keeps_its_sign_next_to_zero():
    for seed in range(3):
        found = density(rotated(torch.linspace(-1, 1, 600, dtype=torch.float64)), steps=20, seed=seed).negative_mass
        assert abs(found.value - 0.5) < 0.02
        assert found.error < 0.05
