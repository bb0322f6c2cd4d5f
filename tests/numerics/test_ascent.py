import pytest
import torch
from torch import nn

from dynaxx.core.displaced import Displaced
from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput
from dynaxx.numerics.ascent import worst_case


class Point(nn.Module):
    def __init__(self, at):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(at, dtype=torch.float64))


def quadratic(curvature, slope, at=(0.0, 0.0, 0.0)):
    curvature, slope = (torch.tensor(v, dtype=torch.float64) for v in (curvature, slope))

    def loss(m, _):
        return (m.w.square() * curvature).sum() / 2 + (m.w * slope).sum()

    return Displaced(Objective(Point(at), loss, [torch.ones(1)]))


def trust_region(curvature, slope, radius):
    """The largest value on the ball by the secular equation ‖(μ − A)⁻¹g‖ = ρ, μ > λ₁."""
    a, g = (torch.tensor(v, dtype=torch.float64) for v in (curvature, slope))
    low, high = float(a.max()), float(a.max() + g.norm() / radius)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float((g / (middle - a)).norm()) > radius else (low, middle)
    x = g / (high - a)
    return float((a * x * x).sum() / 2 + (g * x).sum())


def test_on_a_quadratic_the_ascent_reaches_the_solution_of_the_trust_region_problem():
    curvature, slope = (5.0, 2.0, -1.0), (0.1, 0.4, 1.0)
    truth = trust_region(curvature, slope, 0.7)
    found = worst_case(quadratic(curvature, slope), 0.7, steps=60)
    assert found.rise == pytest.approx(truth, rel=1e-6)
    assert found.rise <= truth * (1 + 1e-12)
    g = torch.tensor(slope, dtype=torch.float64)
    step = 0.7 * g / g.norm()
    one = float((torch.tensor(curvature) * step**2).sum() / 2 + (g * step).sum())
    assert found.one_step == pytest.approx(one, rel=1e-12)
    assert one < 0.95 * truth  # the further steps are needed here


def test_at_a_minimum_it_is_half_the_largest_curvature_times_the_radius_squared():
    found = worst_case(quadratic((5.0, 2.0, 1.0), (0.0, 0.0, 0.0)), 0.3, steps=40)
    assert found.rise == pytest.approx(5.0 * 0.09 / 2, rel=1e-6)


def test_the_adaptive_ball_scales_each_weight():
    point = quadratic((5.0, 2.0, 1.0), (0.0, 0.0, 0.0))
    found = worst_case(point, 0.3, scale=torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64), steps=60)
    assert found.rise == pytest.approx(9.0 * 0.09 / 2, rel=1e-6)  # D A D = diag(0.05, 2, 9)


def test_the_point_is_put_back_and_the_cost_counted():
    point = quadratic((5.0, 2.0, 1.0), (0.1, 0.0, 0.0), at=(0.5, 0.5, 0.5))
    calls = {"forwards": 0, "backwards": 0}
    value, gradient = point.value, point.gradient
    point.value = lambda: calls.__setitem__("forwards", calls["forwards"] + 1) or value()
    point.gradient = lambda: calls.__setitem__("backwards", calls["backwards"] + 1) or gradient()
    found = worst_case(point, 0.3, steps=5)
    assert torch.equal(point.parameters[0], torch.full((3,), 0.5, dtype=torch.float64))
    assert calls == {"forwards": found.forwards, "backwards": found.backwards}
    assert found.backwards <= 5


def test_a_radius_of_zero_is_refused():
    with pytest.raises(BadInput, match="must be positive"):
        worst_case(quadratic((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), 0.0)
