import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput
from dynaxx.numerics.hessian import Hessian
from dynaxx.numerics.lanczos import eigenpairs
from dynaxx.numerics.operator import Dense
from dynaxx.numerics.trace import trace, traces

METHODS = ["hutchinson", "hutch++", "xtrace"]
SPECTRA = {
    "flat": torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1,
    "outliers": torch.cat([
        torch.linspace(50, 5, 9, dtype=torch.float64),
        0.05 * torch.randn(191, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    ]),
    "decaying": 1 / torch.arange(1, 201, dtype=torch.float64) ** 2,
}  # fmt: skip


def rotated(values, dtype=torch.float64):
    n = len(values)
    basis, _ = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    return Dense(((basis * values) @ basis.T).to(dtype))


def spread(operator, budget, method, seeds, known=None):
    """Estimates and stated errors over seeds, of the trace and of the squared norm."""
    found = [traces(operator, budget, method=method, known=known, seed=seed) for seed in range(seeds)]
    assert all(each.products <= budget for each in found)
    return [
        torch.tensor([[(e := getattr(each, name)).value, e.error] for each in found]).T
        for name in ("trace", "squared_norm")
    ]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SPECTRA)
def test_estimates_are_unbiased_and_their_errors_calibrated(name, method):
    values = SPECTRA[name]
    truths = (float(values.sum()), float(values.square().sum()))
    for truth, (found, errors) in zip(truths, spread(rotated(values), 30, method, 150), strict=True):
        rmse = float((found - truth).square().mean().sqrt())
        assert abs(float(found.mean()) - truth) < 4.5 * float(found.std()) / math.sqrt(len(found))
        assert 0.6 < float(errors.square().mean().sqrt()) / rmse < 1.7
        assert float(((found - truth).abs() < 2 * errors).double().mean()) > 0.82


def test_hutchinsons_variance_is_the_formula():
    """§7.1.3: 2(‖A‖²_F − Σ aᵢᵢ²) a probe, d = 200 Wishart."""
    x = torch.randn(800, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = x.T @ x / 800
    predicted = 2 * float(matrix.square().sum() - matrix.diagonal().square().sum())
    assert predicted == pytest.approx(98.0, rel=0.05)
    found, errors = spread(Dense(matrix), 10, "hutchinson", 600)[0]
    assert float(found.var()) == pytest.approx(predicted / 10, rel=0.2)
    assert float(errors.square().mean()) == pytest.approx(predicted / 10, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_of_low_rank_is_found_to_rounding(dtype):
    values = torch.cat([torch.arange(1.0, 6), torch.zeros(95)]).double()
    for method in ("xtrace", "hutch++"):
        found = traces(rotated(values, dtype), 30, method=method)
        rounding = 20 * torch.finfo(dtype).eps
        assert found.trace.value == pytest.approx(15.0, rel=rounding)
        assert found.squared_norm.value == pytest.approx(55.0, rel=rounding)
        assert 0 < found.trace.error < 15 * rounding


@pytest.mark.parametrize("budget", [20, 40])
def test_known_eigenpairs_are_taken_out(budget):
    values = SPECTRA["outliers"]
    operator = rotated(values)
    pairs = eigenpairs(operator, 9, max_products=200)
    found, errors = spread(operator, budget, "deflated", 100, pairs)[0]
    plain = spread(operator, budget, "hutchinson", 100)[0][0]
    rmse = float((found - values.sum()).square().mean().sqrt())
    assert rmse < 0.02 * float(plain.std())
    assert float(errors.square().mean().sqrt()) == pytest.approx(rmse, rel=0.3)
    assert traces(operator, budget, known=pairs).method == "deflated"
    assert float(found.mean()) == pytest.approx(float(values.sum()), abs=4 * rmse / 10)


@pytest.mark.parametrize("budget", [10, 36])
def test_inexact_eigenpairs_do_not_bias(budget):
    """Ritz pairs of a few steps: the trace on their span is that of the Rayleigh quotients, exact or not."""
    values = SPECTRA["decaying"]
    pairs = eigenpairs(rotated(values), 6, max_products=8)
    assert not bool(pairs.converged.all())
    for truth, (found, _) in zip(
        (values.sum(), values.square().sum()), spread(rotated(values), budget, "deflated", 300, pairs), strict=True
    ):
        assert abs(float(found.mean() - truth)) < 4.5 * float(found.std()) / math.sqrt(300)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_a_space_no_larger_than_the_budget_is_exact(n, method):
    operator = Dense(torch.diag(torch.arange(1.0, n + 1)))
    found = traces(operator, 8, method=method)
    assert (found.trace.value, found.trace.error, found.method) == (n * (n + 1) / 2, None, "exact")
    assert found.products == operator.products == n


def test_zero_has_trace_zero():
    for method in METHODS:
        assert trace(Dense(torch.zeros(40, 40)), 12, method=method).value == 0.0


@pytest.mark.parametrize(
    ("budget", "method", "message"),
    [(1, "auto", "at least 2"), (3, "xtrace", "at least 4"), (10, "deflated", "eigenpairs")],
)
def test_bad_input(budget, method, message):
    with pytest.raises(BadInput, match=message):
        trace(Dense(torch.eye(20)), budget, method=method)


@pytest.fixture(scope="module")
def trained():
    """The Hessian of a digits net of 910 parameters after 1000 steps, dense."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32)[:500], torch.tensor(y)[:500]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
    assert sum(p.numel() for p in net.parameters()) == 910
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    for _ in range(1000):
        optimizer.zero_grad()
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    objective = Objective(net.double(), lambda m, b: functional.cross_entropy(m(b[0]), b[1]), [(x.double(), y)])
    return Dense(Hessian(objective).dense())


def test_the_regression_bounds_on_a_trained_net(trained):
    """§5.5: relative RMSE at 90 products ≤ 0.5 %; Hutchinson's is ten times that."""
    truth = float(trained.matrix.trace())

    def rmse(method, known=None):
        found = spread(trained, 90, method, 40, known)[0][0]
        return float((found / truth - 1).square().mean().sqrt())

    assert rmse("xtrace") <= 0.005
    assert rmse("deflated", eigenpairs(trained, 10, max_products=200)) <= 0.01
    assert rmse("hutchinson") > 0.02


def test_its_error_is_honest_where_pyhessians_stop_rule_is_not(trained):
    """PyHessian stops when two running means agree to 0.1 %, by luck; our error covers the truth."""
    truth, misses, stopped = float(trained.matrix.trace()), 0, []
    for seed in range(60):
        rows = trained.space.random(100, seed=seed, kind="rademacher")
        means = (trained(rows) * rows).sum(1).cumsum(0) / torch.arange(1, 101)
        lucky = ((means[1:] - means[:-1]).abs() / (means[:-1].abs() + 1e-6) < 1e-3).nonzero()
        end = int(lucky[0]) + 1 if len(lucky) else 99
        stopped.append(abs(float(means[end]) / truth - 1))
        found = trace(trained, max(end + 1, 4), seed=seed)
        misses += abs(found.value - truth) > 3 * found.error
    assert max(stopped) > 0.1
    assert misses <= 12
