import math

import numpy as np
import pytest
import torch
from torch import nn

from dynaxx.core.displaced import Displaced
from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.noise import average_rise, largest_noise, noisy_values


class Point(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, n, dtype=torch.float64))


def bowl(n=40):
    """L = Σ aᵢ wᵢ²/2 + Σ wᵢ: a rise of σ² Σ aᵢ/2 on average, of variance σ⁴ Σ aᵢ²/2 within a pair."""
    a = torch.linspace(0.5, 4, n, dtype=torch.float64)
    model = Point(n)
    return a, Displaced(Objective(model, lambda m, _: (a * m.w.square()).sum() / 2 + m.w.sum(), [torch.ones(1)]))


def test_the_average_rise_on_a_quadratic_and_its_error():
    a, point = bowl()
    sigma = 0.3  # a standard deviation: noise of σ² would rise by 11 times less
    found = average_rise(point, sigma, pairs=400)
    truth = sigma**2 * float(a.sum()) / 2
    spread = sigma**2 * math.sqrt(float(a.square().sum()) / 2 / 400)
    assert found.error == pytest.approx(spread, rel=0.15)
    assert abs(found.value - truth) < 4 * spread


def test_the_errors_cover_the_truth_as_often_as_they_should():
    a, point = bowl()
    truth = 0.3**2 * float(a.sum()) / 2
    inside = 0
    for seed in range(60):
        found = average_rise(point, 0.3, pairs=12, seed=seed)
        inside += abs(found.value - truth) < 2.2 * found.error  # t with 11 degrees: 95 %
    assert 51 <= inside <= 60


def test_odd_orders_cancel_within_a_pair():
    model = Point(5)
    point = Displaced(Objective(model, lambda m, _: m.w.sum() + (m.w**3).sum() * 0, [torch.ones(1)]))
    assert np.ptp(noisy_values(point, 10.0, pairs=6)) < 1e-12


def test_the_scale_and_the_place():
    a, point = bowl()
    scale = point.parameters[0].detach().abs()
    found = average_rise(point, 0.5, pairs=400, scale=scale)
    truth = 0.25 * float((a * scale**2).sum()) / 2
    assert abs(found.value - truth) < 4 * found.error < truth / 5
    assert torch.equal(point.parameters[0], torch.linspace(-1, 1, 40, dtype=torch.float64))


def test_the_largest_noise_that_a_level_allows():
    seen = []

    def rise(sigma):
        return seen.append(sigma) or 3 * sigma**2

    found = largest_noise(rise, 0.12, 5.0)
    assert 0.2 / 1.01 <= found <= 0.2
    assert len(seen) <= 24
    assert largest_noise(lambda sigma: 3 * sigma**2, 0.12, 1e-4, evaluations=40) == pytest.approx(0.2, rel=0.01)


def test_a_loss_that_never_rises_or_rises_at_once_is_not_applicable():
    with pytest.raises(NotApplicable, match="rises less"):
        largest_noise(lambda sigma: 0.0, 0.1, 1.0)
    with pytest.raises(NotApplicable, match="rises more"):
        largest_noise(lambda sigma: 1.0, 0.1, 1.0)
    with pytest.raises(BadInput, match="must be positive"):
        largest_noise(lambda sigma: 1.0, 0.0, 1.0)
