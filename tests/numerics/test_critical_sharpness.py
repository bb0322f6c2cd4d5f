"""Critical sharpness: exact on quadratics in four forwards, right beyond them, and what it refuses."""

import pytest
import torch
from torch import nn

from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.critical_sharpness import critical_sharpness
from dynaxx.numerics.directional import directional_curvature
from dynaxx.numerics.hessian import Hessian


class Bowl(nn.Module):
    def __init__(self, point):
        super().__init__()
        self.point = nn.Parameter(torch.tensor(point, dtype=torch.float64))


def bowl(loss, point):
    """The objective `loss(point)`, counting its forwards."""
    calls = []

    def loss_fn(model, batch):
        calls.append(1)
        return loss(model.point)

    return Objective(Bowl(point), loss_fn, [torch.zeros(1, dtype=torch.float64)]), calls


def test_is_the_curvature_along_the_gradient_on_a_quadratic_in_four_forwards():
    torch.manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64)
    h = root @ root.T
    for factor in (1e-3, 0.3, 1.0, 20.0):
        objective, calls = bowl(lambda x: x @ h @ x / 2, [1.0, -2.0, 0.5, 3.0, -1.0, 0.2])
        g = objective.gradient()[0]
        truth = directional_curvature(Hessian(objective, check=False), g).value
        calls.clear()
        found = critical_sharpness(objective, g, eta0=factor * 2 / truth)
        assert found.value == pytest.approx(truth, rel=1e-6)
        assert found.error < 0.01 * truth
        assert len(calls) <= (4 if 0.1 < factor < 10 else 7)


def test_of_a_preconditioned_step_it_is_dhd_over_gd():
    h = torch.diag(torch.tensor([5.0, 0.1], dtype=torch.float64))
    objective, _ = bowl(lambda x: x @ h @ x / 2, [1.0, 1.0])
    d = torch.tensor([0.5, 4.0], dtype=torch.float64)
    g = objective.gradient()[0]
    truth = float(d @ h @ d / (g @ d))
    assert critical_sharpness(objective, d, eta0=0.1).value == pytest.approx(truth, rel=1e-6)


def test_finds_the_crossing_of_a_loss_that_is_no_quadratic():
    # (x − ηd)⁴ + (x − ηd)³ at x = 2, d = 1, where the loss is 24: it first rises above at ηd with u⁴ + u³ = 24, u < −1
    objective, calls = bowl(lambda x: (x**4 + x**3).sum(), [2.0])
    u = min(torch.linalg.eigvals(torch.tensor([[-1.0, 0, 0, 24.0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])).tolist(),
            key=lambda z: z.real).real  # fmt: skip
    calls.clear()
    found = critical_sharpness(objective, torch.ones(1, dtype=torch.float64), eta0=1.0, forwards=8)
    assert found.value == pytest.approx(2 / (2 - u), rel=0.02)
    assert abs(found.value - 2 / (2 - u)) <= 2 * found.error + 1e-3
    assert len(calls) <= 8


def test_a_loss_that_overflows_counts_as_risen():
    objective, _ = bowl(lambda x: torch.where(x > -3, x.square(), torch.inf).sum(), [1.0])
    found = critical_sharpness(objective, torch.tensor([2.0]).double(), eta0=50.0, forwards=12)
    assert found.value == pytest.approx(2.0, rel=0.02)


def test_weights_stay_as_they_are():
    objective, _ = bowl(lambda x: x.square().sum(), [1.0, 2.0])
    before = [(p.clone(), p._version, p.grad) for p in objective.parameters]
    critical_sharpness(objective, torch.ones(2, dtype=torch.float64), eta0=0.1)
    for p, (value, version, grad) in zip(objective.parameters, before, strict=True):
        assert torch.equal(p, value)
        assert p._version == version
        assert p.grad is grad


def test_what_has_no_crossing_says_so():
    objective, _ = bowl(lambda x: x.square().sum(), [1.0, 2.0])
    up = torch.tensor([-1.0, -2.0]).double()
    with pytest.raises(NotApplicable, match="rises along the direction at each of 7"):
        critical_sharpness(objective, up, eta0=0.1)
    with pytest.raises(NotApplicable, match="update is zero"):
        critical_sharpness(objective, 0 * up, eta0=0.1)
    line, _ = bowl(lambda x: x.sum(), [1.0, 2.0])
    with pytest.raises(NotApplicable, match="falls along the direction"):
        critical_sharpness(line, torch.ones(2).double(), eta0=0.1)
    for bad in ({"eta0": 0.0}, {"eta0": float("nan")}, {"eta0": 0.1, "forwards": 3}):
        with pytest.raises(BadInput, match="eta0"):
            critical_sharpness(objective, -up, **bad)
    with pytest.raises(BadInput, match="must be finite"):
        critical_sharpness(objective, up * float("nan"), eta0=0.1)
    lost, _ = bowl(lambda x: x.log().sum(), [1.0, -2.0])
    with pytest.raises(BadInput, match="loss of batch 0"):
        critical_sharpness(lost, up, eta0=0.1)
