import pytest
import torch

from dynaxx.numerics.representation import ROWS, output_vector, similarity_vector


def linear_cka(x, y):
    """By definition (Kornblith et al. 2019): ‖YᵀX‖² / (‖XᵀX‖·‖YᵀY‖) of centred features."""
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def test_distance_is_that_of_linear_cka():
    x, y = torch.randn(40, 6), torch.randn(40, 9)
    y[:, :3] += 2 * x[:, :3]
    apart = float((similarity_vector(x) - similarity_vector(y)).norm())
    assert apart**2 == pytest.approx(2 - 2 * linear_cka(x, y))
    assert 0.05 < linear_cka(x, y) < 0.95


def test_rotation_scale_and_offset_change_nothing():
    x = torch.randn(30, 5, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    apart = similarity_vector(x) - similarity_vector(3 * x @ rotation + 7)
    assert float(apart.norm()) < 1e-6


def test_many_rows_are_thinned_evenly_and_constant_ones_have_no_direction():
    assert similarity_vector(torch.randn(5, 100, 3)).shape == ((500 // 8 + 1) ** 2,)
    assert ROWS >= 500 // 8 + 1
    assert float(similarity_vector(torch.ones(10, 3)).norm()) == 0.0


def test_outputs_are_compared_by_root_mean_square():
    one, other = torch.randn(4, 7, 3), torch.randn(4, 7, 3)
    expected = (one.double() - other.double()).square().sum(-1).mean().sqrt()
    assert float((output_vector(one) - output_vector(other)).norm()) == pytest.approx(float(expected))
