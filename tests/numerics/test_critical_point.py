import pytest
import torch
from torch import nn

import dynaxx.numerics.critical_point as module
from dynaxx.core.displaced import Displaced
from dynaxx.core.objective import Objective
from dynaxx.numerics.critical_point import critical_point, signs
from dynaxx.numerics.hessian import Hessian
from dynaxx.numerics.newton_mr import search
from dynaxx.numerics.operator import Dense


class Point(nn.Module):
    def __init__(self, at):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(at, dtype=torch.float64))


def verdict(loss, place):
    point = Displaced(Objective(Point(place), lambda m, _: loss(m.w), [torch.ones(1)]))
    return critical_point(point, Hessian(point, check=False))  # nothing to compare where H = 0


@pytest.mark.parametrize(
    ("loss", "kind", "index"),
    [
        (lambda w: 2 * w[0] ** 2 + w[1] ** 2, "local minimum", 0),
        (lambda w: 2 * w[0] ** 2 - w[1] ** 2, "saddle", 1),
        (lambda w: -2 * w[0] ** 2 - w[1] ** 2, "local maximum", 2),
        (lambda w: w[0] ** 4 + w[1] ** 4, "degenerate", 0),
        (lambda w: w[0] ** 2 + w[1] ** 4, "local minimum", 0),
    ],
)
def test_the_kinds(loss, kind, index):
    found = verdict(loss, (0.0, 0.0))
    assert (found.kind, found.spectrum.index) == (kind, index)


def test_a_slope_is_not_critical():
    found = verdict(lambda w: 2 * w[0] ** 2 - w[1] ** 2, (0.1, 0.2))
    assert found.kind == "not critical"
    assert found.flatness == pytest.approx((1.6**2 + 0.8**2) ** 0.5 / 4 / (0.4**2 + 0.4**2) ** 0.5)


def test_a_search_that_stalls_where_the_gradient_is_in_the_kernel_is_called_gradient_flat():
    """f = x²/2 + y³/3 + y/10 has no critical point; ‖∇f‖ is least at the origin, where Hg = 0 (Frye et al. 2020)."""

    def loss(w):
        return w[0] ** 2 / 2 + w[1] ** 3 / 3 + w[1] / 10

    point = Displaced(Objective(Point((0.8, 1.0)), lambda m, _: loss(m.w), [torch.ones(1)]))
    hessian = Hessian(point)
    found = search(point, hessian)
    assert found.ended != "converged"
    assert found.gradient_norms[-1] == pytest.approx(0.1, rel=1e-3)
    end = critical_point(point, hessian)
    assert end.kind == "gradient-flat"
    assert end.flatness < 1e-3


def test_a_gradient_that_dies_out_far_away_is_not_a_critical_point():
    assert verdict(lambda w: torch.exp(-w).sum(), (25.0,)).kind == "not critical"  # ‖∇L‖ = 1e-11


def test_the_estimated_shares_of_a_large_spectrum(monkeypatch):
    values = torch.cat([torch.linspace(-2, -1, 60), torch.zeros(90), torch.linspace(0.5, 4, 150)]).double()
    exact = signs(Dense(torch.diag(values)))
    assert (exact.index, exact.negative.value, exact.flat.value) == (60, 0.2, 0.3)
    monkeypatch.setattr(module, "DENSE", 10)
    found = signs(Dense(torch.diag(values)))
    assert found.index is None
    assert found.lowest == pytest.approx(-2, rel=1e-3)
    assert found.highest == pytest.approx(4, rel=1e-3)
    for share, truth in ((found.negative, 0.2), (found.flat, 0.3)):
        assert share.error < 0.05
        assert abs(share.value - truth) < 4 * share.error + 0.01
