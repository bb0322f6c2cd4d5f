import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput
from dynaxx.landscape import flatness
from dynaxx.landscape.flatness import Flatness

INVARIANT = {
    "loss", "adaptive_one_step", "adaptive_worst_case", "adaptive_average_case", "adaptive_sharpness", "fisher_rao",
    "fisher_rao_gauss_newton", "relative_flatness",
}  # fmt: skip
CHANGING = {"one_step", "worst_case", "average_case", "sharpness", "pac_bayes_sigma"}


def entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def error(model, batch):
    return (model(batch[0]).argmax(1) != batch[1]).double().mean()


def trained(steps=150):
    """A small ReLU network near a minimum of a separable problem, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x = torch.randn(90, 4, dtype=torch.float64)
    y = (x @ torch.randn(4, 3, dtype=torch.float64)).argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        entropy(model, (x, y)).backward()
        optimizer.step()
    return model, [(x[:64], y[:64]), (x[64:], y[64:])]


def rescaled(model, factor):
    """The construction of Dinh et al. 2017: the same function, other weights."""
    other = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other[0].weight *= factor
        other[0].bias *= factor
        other[2].weight /= factor
    return other


@pytest.fixture(scope="module")
def charts():
    model, batches = trained()
    return {a: flatness(rescaled(model, a), entropy, batches) for a in (1.0, 10.0, 100.0)}


def hessian(model, batches):
    """Of the mean over all examples, by autograd on one flat vector: an independent way."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    names, tensors = zip(*((n, p.detach()) for n, p in model.named_parameters()), strict=True)
    sizes, shapes = [t.numel() for t in tensors], [t.shape for t in tensors]

    def loss(flat):
        parts = [t.view(s) for t, s in zip(flat.split(sizes), shapes, strict=True)]
        return nn.functional.cross_entropy(
            torch.func.functional_call(model, dict(zip(names, parts, strict=True)), (x,)), y
        )

    flat = torch.cat([t.reshape(-1) for t in tensors])
    return torch.autograd.functional.hessian(loss, flat), flat, dict(zip(names, np.cumsum([0, *sizes]), strict=False))


def test_what_survives_layer_rescaling_and_what_does_not(charts):
    one = charts[1.0]
    assert set(one.values) == INVARIANT | CHANGING
    for factor in (10.0, 100.0):
        other = charts[factor]
        for name in INVARIANT:
            tolerance = 2e-3 if name == "adaptive_sharpness" else 1e-6  # the eigenvalue solver's own
            assert other[name] == pytest.approx(one[name], rel=tolerance), name
        for name in CHANGING:
            assert abs(other[name] / one[name] - 1) > 0.5, name
    for name, value in one.values.items():
        assert value.about.endswith(f"survives layer rescaling: {'yes' if name in INVARIANT else 'no'}")


def test_the_curvature_grows_as_the_construction_predicts(charts):
    """H → D⁻¹HD⁻¹: λ₁ and with it the ascent grow by a² in the end, the noise allowed falls by a."""
    assert charts[100.0]["sharpness"] / charts[10.0]["sharpness"] == pytest.approx(100, rel=0.02)
    assert charts[10.0]["pac_bayes_sigma"] / charts[100.0]["pac_bayes_sigma"] == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("factor", [1.0, 10.0])
def test_the_values_are_those_of_the_dense_hessian(charts, factor):
    model, batches = trained()
    model = rescaled(model, factor)
    h, w, start = hessian(model, batches)
    chart = charts[factor]
    assert chart["sharpness"] == pytest.approx(float(torch.linalg.eigvalsh(h)[-1]), rel=2e-3)
    adaptive = float(torch.linalg.eigvalsh(w.abs()[:, None] * h * w.abs())[-1])
    assert chart["adaptive_sharpness"] == pytest.approx(adaptive, rel=2e-3)
    assert chart["fisher_rao"] == pytest.approx(float(w @ h @ w), rel=1e-9)
    truth = 0.0
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            where = slice(start[name], start[name] + parameter.numel())
            truth += float(w[where] @ w[where]) * float(h[where, where].trace())
    value = chart.values["relative_flatness"]
    assert abs(value.value - truth) < 4 * value.error
    exact = flatness(model, entropy, batches, samples=40, pairs=2, steps=1)  # each matrix has at most 32 entries
    assert exact["relative_flatness"] == pytest.approx(truth, rel=1e-9)
    assert exact.values["relative_flatness"].error is None


def test_the_gauss_newton_form_is_that_of_the_jacobian(charts):
    model, batches = trained()
    x = torch.cat([b[0] for b in batches])
    named = {n: p.detach() for n, p in model.named_parameters()}

    def call(p):
        return torch.func.functional_call(model, p, (x,))

    jacobian = torch.func.jacrev(call)(named)
    tangent = sum((jacobian[n].flatten(2) * named[n].flatten()).sum(2) for n in named)
    p = call(named).softmax(1)
    truth = float(((p * tangent**2).sum(1) - (p * tangent).sum(1) ** 2).mean())
    assert charts[1.0]["fisher_rao_gauss_newton"] == pytest.approx(truth, rel=1e-9)


class Bowl(nn.Module):
    def __init__(self, n=200):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(n, dtype=torch.float64))


def test_the_noise_is_a_standard_deviation():
    """L = 2 Σ wᵢ²: a rise of 2 n σ². A published tool passes σ² for the standard deviation."""
    chart = flatness(Bowl(), lambda m, x: 2 * m.w.square().sum() * x.mean(), [torch.ones(4)], level=0.04)
    assert chart["pac_bayes_sigma"] == pytest.approx(math.sqrt(0.04 / 400), rel=0.05)
    assert chart["average_case"] == pytest.approx(400 * 0.01**2, rel=0.1)
    assert chart["worst_case"] == pytest.approx(2 * 0.05**2, rel=1e-6)


def test_the_bounds_hold_on_new_examples_and_say_what_they_assume():
    torch.manual_seed(3)
    model = nn.Linear(5, 2, bias=False).double()
    with torch.no_grad():  # a large margin: noise within it is harmless
        model.weight.copy_(torch.tensor([[3.0, 0, 0, 0, 0], [-3.0, 0, 0, 0, 0]]))
    x = torch.randn(6000, 5, dtype=torch.float64)
    y = (x[:, 0] < 0).long()
    batches = [(x[:2000], y[:2000])]
    chart = flatness(model, entropy, batches, error=error)
    test_error = float(error(model, (x[2000:], y[2000:])))
    assert test_error < chart["maurer_bound"] < chart["mcallester_bound"] < 1
    assert any("2,000 independent examples" in note and "prior at zero" in note for note in chart.notes)
    near = flatness(model, entropy, batches, error=error, initial=dict(model.named_parameters()))
    assert near["maurer_bound"] < chart["maurer_bound"]  # KL = 0: the prior knew
    assert any("KL = 0 nats" in note for note in near.notes)


def test_without_a_bounded_loss_the_bounds_are_not_applicable(charts):
    assert any("not applicable without error=" in note for note in charts[1.0].notes)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return 3 * g * ctx.saved_tensors[0] ** 2


def test_differences_are_said_where_there_is_no_second_derivative():
    model = nn.Linear(2, 1).double()
    chart = flatness(model, lambda m, x: Cube.apply(m(x)).square().mean(), [torch.ones(2, 2, dtype=torch.float64)])
    assert any("Cube" in note and "Differences of gradients are used" in note for note in chart.notes)
    assert "fisher_rao_gauss_newton" not in chart.values
    truth = flatness(model, lambda m, x: m(x).pow(6).mean(), [torch.ones(2, 2, dtype=torch.float64)])
    assert chart["sharpness"] == pytest.approx(truth["sharpness"], rel=1e-4)


def test_a_loss_that_never_rises_has_no_sigma():
    model = nn.Linear(2, 1).double()
    chart = flatness(model, lambda m, x: m(x).mean() * 0 + 1, [torch.ones(2, 2, dtype=torch.float64)])
    assert "pac_bayes_sigma" not in chart.values
    assert any("pac_bayes_sigma: not applicable. The loss rises less" in note for note in chart.notes)
    assert chart["sharpness"] == 0


def test_it_leaves_no_trace_stays_within_its_price_and_repeats():
    model, batches = trained(5)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    calls = []

    def counted(model, batch):
        calls.append(1)
        return entropy(model, batch)

    objective = Objective(model, counted, batches)
    probe = Flatness(pairs=4)
    price, stream = probe.price(objective), torch.get_rng_state()
    first = probe.run(objective)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert first.cost.forwards <= price.forwards
    assert first.cost.backwards <= price.backwards
    assert first.cost.products <= price.products
    assert len(calls) / 2 <= price.forwards + price.backwards + price.products
    assert {n: v.value for n, v in probe.run(objective).values.items()} == {n: v.value for n, v in first.values.items()}


def test_the_ascent_alone_says_the_same_of_it_for_a_tenth():
    model, batches = trained(5)
    objective = Objective(model, entropy, batches)
    whole, part = Flatness(), Flatness(measures="ascent")
    one, two = whole.run(objective), part.run(objective)
    assert set(two.values) == {"loss", "one_step", "worst_case", "adaptive_one_step", "adaptive_worst_case"}
    assert all(one[name] == two[name] for name in two.values)
    price = part.price(objective)
    assert (two.cost.products, two.cost.backwards) == (0, price.backwards)
    assert two.cost.forwards <= price.forwards < whole.price(objective).forwards / 10


def test_it_is_drawn_and_written(charts):
    json.dumps(charts[1.0].to_dict(), allow_nan=False)
    charts[1.0].plot().savefig("/dev/null", format="png")


def test_bad_options():
    with pytest.raises(BadInput, match=r"flatness\(radius=\.\.\.\) must be more than 0"):
        Flatness(radius=0.0)
    with pytest.raises(BadInput, match=r"flatness\(pairs=\.\.\.\) must be more than 1"):
        Flatness(pairs=1)
    with pytest.raises(BadInput, match="a probability below 1"):
        Flatness(delta=1.0)
    with pytest.raises(BadInput, match="'all' or 'ascent'"):
        Flatness(measures="some")
    model, batches = trained(1)
    with pytest.raises(BadInput, match=r"lacks '0.weight'"):
        flatness(model, entropy, batches, error=error, initial={})
    with pytest.raises(BadInput, match=r"must return a loss in \[0, 1\]"):
        flatness(model, entropy, batches, error=lambda m, b: 5 * entropy(m, b))
