"""Curvature signals on losses whose Hessian is known."""

import math

import pytest
import torch
from torch import nn

from dynaxx.core.objective import Objective
from dynaxx.core.rates import RateFactors
from dynaxx.core.records import Axis
from dynaxx.optim.kl_shampoo import KLShampoo
from dynaxx.optim.shampoo import Shampoo
from dynaxx.optim.soap import SOAP

SPECTRUM = torch.tensor([9.0, 4.0, 2.0, 1.0, 0.5, 0.0, -1.0], dtype=torch.float64)


class Quadratic(nn.Module):
    """L = ½ θᵀHθ with a known H, its parameters in two tensors, one of them unused."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(torch.randn(7, 7, generator=generator, dtype=torch.float64))[0]
        self.register_buffer("matrix", basis @ torch.diag(SPECTRUM) @ basis.T)
        self.register_buffer("basis", basis)
        self.a = nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))

    def forward(self, x):
        theta = torch.cat([self.a, self.b])
        return (theta @ self.matrix @ theta) / 2 * x.mean()


def loss_fn(model, batch):
    return model(batch)


@pytest.fixture
def quadratic():
    return Quadratic()


def objective(model, factor=1.0):
    return Objective(model, loss_fn, [torch.full((4, 1), factor, dtype=torch.float64)], mode="as is")


def stepped(found, model, factor=1.0, **facts):
    model(torch.ones(4, 1, dtype=torch.float64)).backward()
    return found.step(objective=objective(model, factor), **facts)


def sgd(model, lr=0.01, **options):
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def test_sharpness_is_the_largest_eigenvalue(bench, quadratic):
    found = bench(quadratic, sgd(quadratic), "sharpness")
    values = stepped(found, quadratic)
    bound = float(values["sharpness.bound"])
    assert float(values["sharpness"]) == pytest.approx(9.0, abs=max(bound, 1e-9))
    assert bound <= 0.09
    first = float(values["sharpness.products"])
    # The Hessian doubles, its vectors stay: the second search begins where the first ended.
    values = stepped(found, quadratic, factor=2.0)
    assert float(values["sharpness"]) == pytest.approx(18.0, rel=1e-3)
    assert float(values["sharpness.products"]) < first


def test_the_lowest_ritz_value_shows_a_saddle_and_only_a_saddle(bench, quadratic):
    lowest = float(stepped(bench(quadratic, sgd(quadratic), "sharpness"), quadratic)["sharpness.lowest"])
    assert float(SPECTRUM[-1]) - 1e-9 <= lowest < 0
    with torch.no_grad():
        quadratic.matrix += 1.5 * torch.eye(len(SPECTRUM), dtype=torch.float64)  # positive definite
    lowest = float(stepped(bench(quadratic, sgd(quadratic), "sharpness"), quadratic)["sharpness.lowest"])
    assert lowest >= 0.5 - 1e-9


def test_a_state_of_other_parameters_is_not_used(bench, quadratic):
    found = bench(quadratic, sgd(quadratic), "sharpness")
    stepped(found, quadratic)
    quadratic.b.requires_grad_(False)
    values = stepped(found, quadratic)
    truth = float(torch.linalg.eigvalsh(quadratic.matrix[:3, :3])[-1])
    assert float(values["sharpness"]) == pytest.approx(truth, rel=1e-2)


def test_trace_and_its_mean(bench, quadratic):
    """Unbiased, with an error that tells the truth: over many steps, each with random vectors of its own."""
    found = bench(quadratic, sgd(quadratic, lr=0.0), "trace")
    steps = [stepped(found, quadratic) for _ in range(80)]
    errors = torch.stack([values["trace"] for values in steps]) - 15.5
    assert len(set(errors.tolist())) > 70  # random signs: two draws may give the same number
    assert abs(float(errors.mean())) < 4 * float(errors.std()) / 80**0.5
    told = float(torch.stack([values["trace.error"] for values in steps]).square().mean().sqrt())
    assert told == pytest.approx(float(errors.square().mean().sqrt()), rel=0.4)
    assert float(steps[0]["trace.mean"]) == pytest.approx(float(steps[0]["trace"]) / 7, rel=1e-6)


def test_trace_takes_what_sharpness_has_found(bench, quadratic, monkeypatch):
    """Known eigenvalues enter exactly, so that the error is only that of the rest."""
    from dynaxx.signals import trace as module

    seen = []
    real = module.trace

    def spied(*args, **options):
        seen.append(options["known"])
        return real(*args, **options)

    monkeypatch.setattr(module, "trace", spied)
    found = bench(quadratic, sgd(quadratic), "sharpness", "trace")
    values = stepped(found, quadratic)
    assert float(seen[0].values[0]) == pytest.approx(float(values["sharpness"]), rel=1e-6)
    del found.signals["sharpness"]
    stepped(found, quadratic)
    assert seen[1] is None


def test_directional_curvature_is_along_the_step_s_own_gradient(bench, quadratic):
    found = bench(quadratic, sgd(quadratic), "directional_curvature")
    theta = torch.cat([quadratic.a, quadratic.b]).detach()
    g = quadratic.matrix @ theta
    values = stepped(found, quadratic)
    truth = float(g @ quadratic.matrix @ g / (g @ g))
    assert float(values["directional_curvature"]) == pytest.approx(truth, rel=1e-6)


def test_a_missing_gradient_counts_as_zero(bench, quadratic):
    found = bench(quadratic, sgd(quadratic), "directional_curvature")
    quadratic.a.grad = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    values = found.step(objective=objective(quadratic))
    v = torch.tensor([1.0, 2.0, 0, 0, 0, 0, 0], dtype=torch.float64)
    assert float(values["directional_curvature"]) == pytest.approx(float(v @ quadratic.matrix @ v / 5), rel=1e-6)


def test_a_gradient_of_zero_has_no_direction(bench, quadratic):
    found = bench(quadratic, sgd(quadratic), "directional_curvature")
    assert math.isnan(float(found.step(objective=objective(quadratic))["directional_curvature"]))


@pytest.mark.parametrize("rate_factor", [1.0, 0.5])
@pytest.mark.parametrize(("options", "threshold"), [({}, 20.0), ({"momentum": 0.9}, 38.0)])
def test_the_margin_of_gradient_descent(bench, quadratic, rate_factor, options, threshold):
    """2/η (heavy ball: (2 + 2β)/η) over λ₁ = 9; a controller that halves the rate doubles it."""
    found = bench(quadratic, sgd(quadratic, lr=0.1, **options), "stability_margin")
    values = stepped(found, quadratic, rates=RateFactors(reactive=rate_factor))
    assert float(values["stability_margin"]) == pytest.approx(threshold / rate_factor / 9, rel=1e-2)
    ratio = float(values["stability_margin.threshold"]) / float(values["stability_margin.sharpness"])
    assert ratio == pytest.approx(float(values["stability_margin"]), rel=1e-5)


def test_the_margin_of_gradient_descent_is_free_beside_sharpness(bench, quadratic):
    found = bench(quadratic, sgd(quadratic, lr=0.1), "sharpness", "stability_margin")
    values = stepped(found, quadratic)
    assert float(values["stability_margin.products"]) == 0
    assert float(values["stability_margin"]) == pytest.approx(20 / float(values["sharpness"]), rel=1e-6)
    del found.signals["sharpness"]  # at a step at which sharpness is not due
    assert "stability_margin" not in stepped(found, quadratic)


def test_the_margin_of_adam_is_that_of_the_preconditioned_hessian(bench, quadratic):
    """38/η over λ₁ of P^(-1/2) H P^(-1/2), P = (1 − β₁ᵗ)(√v̂ + ε) from the optimizer's own state."""
    optimizer = torch.optim.Adam(quadratic.parameters(), lr=1e-3)
    found = bench(quadratic, optimizer, "sharpness", "stability_margin")
    for _ in range(3):
        optimizer.zero_grad()
        values = stepped(found, quadratic)
    v = torch.cat([optimizer.state[p]["exp_avg_sq"] for p in quadratic.parameters()]) / (1 - 0.999**3)
    d = ((1 - 0.9**3) * (v.sqrt() + 1e-8)) ** -0.5
    truth = float(torch.linalg.eigvalsh(d[:, None] * quadratic.matrix * d)[-1])
    value, threshold = float(values["stability_margin.sharpness"]), float(values["stability_margin.threshold"])
    assert threshold / value == pytest.approx(3.8e4 / truth, rel=1e-2)
    assert float(values["stability_margin.products"]) > 0


class Coupled(nn.Module):
    """L = ½ θᵀHθ of a 4 × 3 matrix and a vector, every entry coupled with every other."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        root = torch.randn(17, 17, generator=generator, dtype=torch.float64)
        self.register_buffer("matrix", root @ root.T)
        self.a = nn.Parameter(torch.randn(4, 3, generator=generator, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(5, generator=generator, dtype=torch.float64))

    def forward(self, x):
        theta = torch.cat([self.a.flatten(), self.b])
        return (theta @ self.matrix @ theta) / 2 * x.mean()


def inverse_in_bases(state, name):
    """P⁻¹ of the 4 × 3 matrix but for the rate and the first moment's correction, dense, rows before columns."""
    left, right = (state[f"{side}_axes_0"][0].T for side in ("left", "right"))
    if name == "soap":
        values = 1 / ((state["exp_avg_sq"] / (1 - 0.95 ** (float(state["step"]) - 1))).sqrt() + 1e-8)
    else:
        outer = state["left_values_0"][0][:, None] * state["right_values_0"][0]
        values = outer ** (-0.25 if name == "shampoo" else -0.5)
    basis = torch.kron(left, right)
    return basis @ values.flatten().diag() @ basis.T


@pytest.mark.parametrize(
    ("name", "make", "beta1"),
    [
        ("soap", lambda p: SOAP(p, lr=1e-3, weight_decay=0.0, every=100), 0.95),
        ("kl_shampoo", lambda p: KLShampoo(p, lr=1e-3, weight_decay=0.0, every=100), 0.95),
        ("shampoo", lambda p: Shampoo(p, lr=1e-3, weight_decay=0.0, graft="none", every=1), 0.9),
    ],
)
def test_the_margin_in_eigenbases_is_that_of_the_dense_preconditioner(bench, name, make, beta1):
    """λ₁ of P⁻¹H, which is not symmetric, by the dense matrices."""
    model = Coupled()
    optimizer = make(model.parameters())
    found = bench(model, optimizer, "stability_margin")
    for _ in range(4):
        optimizer.zero_grad()
        values = stepped(found, model)
    steps, state = 3 if name == "soap" else 4, optimizer.state[model.b]
    vector = 1 / ((state["exp_avg_sq"] / (1 - optimizer.defaults["betas"][1] ** 4)).sqrt() + 1e-8)
    inverse = torch.block_diag(
        inverse_in_bases(optimizer.state[model.a], name) / (1 - beta1**steps), vector.diag() / (1 - beta1**4)
    )
    truth = 1e-3 * float(torch.linalg.eigvals(inverse @ model.matrix).real.max())
    threshold = (2 + 2 * beta1) / (1 - beta1)
    assert float(values["stability_margin"]) == pytest.approx(threshold / truth, rel=1e-2)


def test_columns_have_no_axis(bench, quadratic):
    found = bench(quadratic, sgd(quadratic), "sharpness", "trace", "directional_curvature")
    stepped(found, quadratic)
    assert all(not isinstance(column.axis, Axis) for column in found.columns.values())


def test_margin_borrows_the_sharpness_under_weight_decay_too(bench, quadratic):
    """H + wI has the eigenvectors of H: no product of its own, and λ₁(D (H + W) D) = η (9 + w)."""
    found = bench(quadratic, sgd(quadratic, lr=0.1, weight_decay=0.5), "sharpness", "stability_margin")
    values = stepped(found, quadratic)
    assert float(values["stability_margin.products"]) == 0
    assert float(values["stability_margin.sharpness"]) == pytest.approx(0.1 * 9.5, rel=1e-2)
