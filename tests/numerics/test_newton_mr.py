import numpy as np
import pytest
import torch
from torch import nn

from dynaxx.core.displaced import Displaced
from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput
from dynaxx.numerics.hessian import Hessian
from dynaxx.numerics.krylov import krylov
from dynaxx.numerics.newton_mr import newton_mr_step, saddle_free_step, search
from dynaxx.numerics.operator import Dense


class Point(nn.Module):
    def __init__(self, at):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(at, dtype=torch.float64))


def at(loss, place):
    point = Displaced(Objective(Point(place), lambda m, _: loss(m.w), [torch.ones(1)]))
    return point, Hessian(point)


def indefinite():
    q, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return q @ torch.diag(torch.tensor([4.0, 2.0, 1.0, -1.0, -3.0, 0.0], dtype=torch.float64)) @ q.T


def test_the_newton_mr_step_is_minus_the_pseudo_inverse_times_the_gradient():
    h = indefinite()
    # A gradient that has a part in the kernel: no step solves H d = −g, and the shortest least-squares one is asked.
    g = torch.linspace(1, 2, 6, dtype=torch.float64)
    basis = krylov(Dense(h), g, 6)
    found = basis.vector(newton_mr_step(basis, 0.0, 1e-10))
    assert torch.allclose(h @ found, -h @ torch.linalg.pinv(h, hermitian=True) @ g, atol=1e-9)
    damped = basis.vector(newton_mr_step(basis, 0.7, 1e-10))
    assert torch.allclose(damped, -torch.linalg.solve(h @ h + 0.49 * torch.eye(6, dtype=torch.float64), h @ g))


def test_the_saddle_free_step_takes_curvature_by_its_size():
    h = indefinite()
    g = h @ torch.linspace(1, 2, 6, dtype=torch.float64)
    basis = krylov(Dense(h), g, 6)
    values, vectors = torch.linalg.eigh(h)
    inverse = torch.where(values.abs() > 1e-9, 1 / values.abs(), 0.0)
    truth = -(vectors * inverse) @ (vectors.T @ g)
    assert torch.allclose(basis.vector(saddle_free_step(basis, 0.0, 1e-10)), truth, atol=1e-9)


def test_on_a_quadratic_one_step_reaches_the_saddle():
    curvature = torch.tensor([2.0, 1.0, -3.0], dtype=torch.float64)
    point, hessian = at(lambda w: (curvature * (w - 1).square()).sum() / 2, (4.0, -2.0, 3.0))
    found = search(point, hessian)
    assert (found.ended, len(found.losses)) == ("converged", 2)
    assert torch.allclose(point.parameters[0], torch.ones(3, dtype=torch.float64), atol=1e-9)


def test_newton_mr_goes_to_the_saddle_and_saddle_free_leaves_it():
    def loss(w):
        return (w[0] ** 2 - 1) ** 2 / 4 + w[1] ** 2  # a saddle at (0, 0), minima at (±1, 0)

    point, hessian = at(loss, (0.3, 0.5))
    assert search(point, hessian).ended == "converged"
    assert float(point.parameters[0].detach().norm()) < 1e-6
    point, hessian = at(loss, (0.3, 0.5))
    found = search(point, hessian, method="saddle_free")
    assert found.ended == "converged"
    assert torch.allclose(point.parameters[0], torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-6)
    assert np.all(np.diff(found.losses) < 0)


@pytest.mark.parametrize("start", [(0.0, 0.0), (-0.5, -0.5), (3.5, 1.0), (0.5, 2.5), (-4.0, 0.5), (4.0, 4.0)])
def test_every_end_is_one_of_the_nine_critical_points_of_himmelblau(start):
    """f = (x² + y − 11)² + (x + y² − 7)²: four minima of value 0, four saddles and a maximum (Himmelblau 1972)."""
    point, hessian = at(lambda w: (w[0] ** 2 + w[1] - 11) ** 2 + (w[0] + w[1] ** 2 - 7) ** 2, start)
    before = hessian.products
    found = search(point, hessian)
    assert found.ended == "converged"
    known = {0: [0.0], 1: [104.0152, 178.3372, 67.7193, 13.3119], 2: [181.6165]}
    index = int((torch.linalg.eigvalsh(hessian.dense()) < 0).sum())
    assert min(abs(found.losses[-1] - value) for value in known[index]) < 1e-3
    assert np.all(np.diff(found.gradient_norms) < 0)
    assert before < found.products < hessian.products
    assert found.gradients >= len(found.losses)


def test_nothing_of_the_model_is_written():
    model = Point((0.3, 0.5))
    point = Displaced(Objective(model, lambda m, _: (m.w**4).sum(), [torch.ones(1)]))
    search(point, Hessian(point), iterations=3)
    assert model.w.tolist() == [0.3, 0.5]
    assert model.w.grad is None


def test_bad_options():
    point, hessian = at(lambda w: w.square().sum(), (1.0,))
    with pytest.raises(BadInput, match="must be positive"):
        search(point, hessian, iterations=0)
