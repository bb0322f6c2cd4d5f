"""Training at its threshold: gradient descent at 2/η, Adam at 38/η, none at a small rate; the catapult."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from dynaxx.core.objective import Objective
from dynaxx.numerics.hessian import Hessian
from dynaxx.numerics.lanczos import eigenpairs
from dynaxx.numerics.preconditioner import preconditioning
from dynaxx.numerics.tracker import CurvatureTracker


def half_square(model, batch):
    inputs, targets = batch
    return (model(inputs) - targets).square().sum(1).mean() / 2


@dataclass
class Run:
    """Measurements along a run: λ over its threshold, relative errors where they were asked for, mean products."""

    ratios: torch.Tensor
    errors: torch.Tensor
    products: float

    @property
    def last_third(self):
        return float(self.ratios[-len(self.ratios) // 3 :].mean())


def digits(width):
    """A 64-w-w-10 tanh net and the first 1000 digits."""
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = (torch.as_tensor(a) for a in datasets.load_digits(return_X_y=True))
    x = x.float()
    x = ((x - x.mean(0)) / (x.std(0, correction=0) + 1e-6))[:1000]
    batch = (x, nn.functional.one_hot(y[:1000].long(), 10).float())
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10)
    )  # fmt: skip
    return model, batch


def polynomial(degree):
    """A 1-100-1 tanh net and 20 points of a Chebyshev polynomial (Cohen et al. 2021)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 100), nn.Tanh(), nn.Linear(100, 1, bias=False))
    for weight in (model[0].weight, model[2].weight):
        nn.init.xavier_normal_(weight, gain=1.9)
    nn.init.zeros_(model[0].bias)
    x = torch.linspace(-1, 1, 20)[:, None]
    return model, (x, torch.cos(degree * x.arccos()))


def train(make, steps, *, every=50, width=100, exact=False, degree=None):
    """Full-batch training on digits, or on a polynomial of a degree, λ measured along the way."""
    model, batch = digits(width) if degree is None else polynomial(degree)
    optimizer = make(model.parameters())
    hessian = Hessian(Objective(model, half_square, [batch]))
    tracker = CurvatureTracker(hessian)
    ratios, errors = [], []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        half_square(model, batch).backward()
        optimizer.step()
        if step % every:
            continue
        found = preconditioning(optimizer, hessian.space)
        tracker.operator = found.operator(hessian)
        value = float(tracker.measure().values[0])
        ratios.append(value / found.threshold)
        if step == every:
            cold = tracker.products
        if exact:
            truth = float(eigenpairs(tracker.operator, 2, tolerance=1e-6, spare=0).values[0])
            errors.append(abs(value - truth) / truth)
    return Run(
        ratios=torch.tensor(ratios),
        errors=torch.tensor(errors or [0.0]),
        products=(tracker.products - cold) / (tracker.measurements - 1),
    )


def test_curvature_rises_towards_the_threshold():
    run = train(lambda p: torch.optim.SGD(p, lr=0.3), 600)
    assert run.ratios[0] == pytest.approx(0.45, abs=0.1)
    assert 0.95 < float(run.ratios[-3:].mean()) < 1.1


def test_tracking_is_cheap_and_right_below_the_threshold():
    """Peers start cold at each measurement: 13 to 65 products."""
    run = train(lambda p: torch.optim.SGD(p, lr=0.05), 600, every=20, exact=True)
    assert run.products <= 4
    assert float(run.errors.median()) <= 1e-3


def test_negative_control_a_small_rate_keeps_far_from_its_threshold():
    run = train(lambda p: torch.optim.SGD(p, lr=0.05), 600, width=50)
    assert float(run.ratios.max()) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "most"), [(0.3, 1.04), (0.5, 1.06)])
def test_gradient_descent_hovers_just_above_two_over_eta(rate, most):
    run = train(lambda p: torch.optim.SGD(p, lr=rate), 3000)
    assert 1.0 <= run.last_third <= most
    assert float(run.ratios.max()) < 1.35
    assert run.products <= 10


@pytest.mark.slow
def test_adam_settles_at_thirty_eight_over_eta():
    """Cohen et al. 2022: the preconditioned Hessian's λ₁ equilibrates at (2 + 2β₁)/((1 − β₁)η)."""
    run = train(lambda p: torch.optim.Adam(p, lr=1e-3), 3000)
    assert run.ratios[0] < 0.15
    assert run.last_third == pytest.approx(1.0, abs=0.02)
    assert run.products <= 10


@pytest.mark.slow
def test_adam_at_a_smaller_rate_gets_there_later():
    run = train(lambda p: torch.optim.Adam(p, lr=3e-4), 3000)
    assert float(run.ratios[2300 // 50 - 1]) == pytest.approx(0.75, abs=0.05)
    assert float(run.ratios[-1]) == pytest.approx(1.0, abs=0.03)
    assert float(run.ratios.max()) < 1.05


@pytest.mark.slow
@pytest.mark.parametrize(("degree", "rate", "begins"), [(4, 0.2, 0.8), (5, 0.1, 0.37)])
def test_polynomials_are_fitted_at_the_threshold(degree, rate, begins):
    """Four hundred times fewer parameters, twenty examples, and no classes."""
    run = train(lambda p: torch.optim.SGD(p, lr=rate), 20_000, every=200, degree=degree)
    assert float(run.ratios[0]) == pytest.approx(begins, abs=0.1)
    assert run.last_third == pytest.approx(1.0, abs=0.03)
    assert float(run.ratios.max()) < 1.15


@pytest.mark.slow
@pytest.mark.parametrize(("every", "most"), [(50, 4), (100, 7), (150, 7)])
def test_tracking_at_other_cadences(every, most):
    run = train(lambda p: torch.optim.SGD(p, lr=0.05), 3000, every=every, exact=True)
    assert run.products <= most
    assert float(run.errors.median()) <= 1e-3


@pytest.mark.slow
def test_tracking_at_the_edge():
    run = train(lambda p: torch.optim.SGD(p, lr=0.3), 2000, exact=True)
    assert run.products <= 10
    assert float(run.errors.median()) <= 1e-3


class Product(nn.Module):
    """f = uᵀv/√n."""

    def __init__(self, n=512):
        super().__init__()
        torch.manual_seed(0)
        self.u, self.v = nn.Parameter(torch.randn(n).double()), nn.Parameter(torch.randn(n).double())

    def forward(self):
        return self.u @ self.v / len(self.u) ** 0.5


@pytest.mark.parametrize("kappa", [1.0, 1.9, 2.5, 3.0, 3.8, 4.2])
def test_catapult(kappa):
    """Lewkowycz et al. 2003.02218: ηλ₀ < 2 is lazy, from 2 to 4 the loss rises and λ falls, beyond it diverges."""
    model = Product()
    hessian = Hessian(Objective(model, lambda m, _: m().square() / 2, [torch.zeros(1)]), check=False)

    def norm():  # of the Jacobian, the Hessian's λ₁ where f = 0
        return float((model.u.detach().square().sum() + model.v.detach().square().sum()) / 512)

    rate = kappa / norm()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    first, peak = abs(float(model().detach())), 0.0
    for _ in range(2000):
        optimizer.zero_grad()
        loss = model().square() / 2
        loss.backward()
        optimizer.step()
        peak = max(peak, abs(float(model().detach())) / first)
        if not peak < 1e6:
            break
    if kappa > 4:
        assert not peak < 1e6
        return
    assert abs(float(model().detach())) < 1e-6
    final = rate * float(eigenpairs(hessian, tolerance=1e-8).values[0])
    assert final == pytest.approx(rate * norm(), rel=1e-5)
    if kappa < 2:
        assert peak <= 1.0
        assert final == pytest.approx(kappa, rel=0.03)
    else:
        assert peak > 5
        assert final < 2
