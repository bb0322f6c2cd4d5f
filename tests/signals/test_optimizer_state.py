import math

import pytest
import torch
from torch import nn

NAMES = {
    "optimizer_state.effective_step",
    "optimizer_state.momentum_ratio",
    "optimizer_state.epsilon_dominated",
    "optimizer_state.age",
}
BETA1, BETA2, EPSILON = 0.8, 0.95, 1e-3


class Adam64:
    """Adam's moments by their definition, in float64, one dictionary per parameter."""

    def __init__(self, model):
        self.m = {p: torch.zeros_like(p, dtype=torch.float64) for p in model.parameters()}
        self.v = {p: torch.zeros_like(p, dtype=torch.float64) for p in model.parameters()}
        self.largest = {p: torch.zeros_like(p, dtype=torch.float64) for p in model.parameters()}
        self.t = dict.fromkeys(self.m, 0)

    def see(self):
        for p in self.m:
            if p.grad is not None:
                g = p.grad.double()
                self.m[p] = BETA1 * self.m[p] + (1 - BETA1) * g
                self.v[p] = BETA2 * self.v[p] + (1 - BETA2) * g * g
                self.largest[p] = torch.maximum(self.largest[p], self.v[p])
                self.t[p] += 1

    def corrected(self, p, amsgrad=False):
        v = self.largest[p] if amsgrad else self.v[p]
        return self.m[p] / (1 - BETA1 ** self.t[p]), v / (1 - BETA2 ** self.t[p])

    def ratio(self, parameters, amsgrad=False):
        pairs = [self.corrected(p, amsgrad) for p in parameters if self.t[p]]
        if not pairs:
            return math.nan
        first = sum(float(m.square().sum()) for m, _ in pairs)
        return math.sqrt(first / sum(float(v.sum()) for _, v in pairs))

    def under_epsilon(self, parameters, amsgrad=False):
        roots = [self.corrected(p, amsgrad)[1].sqrt().flatten() for p in parameters if self.t[p]]
        return float((torch.cat(roots) < EPSILON).double().mean()) if roots else math.nan

    def age(self, parameters, beta=BETA2):
        """Σ k βᵏ / Σ βᵏ over the gradients seen, k steps old; mean over coordinates."""
        ages = [
            (sum(k * beta**k for k in range(self.t[p])) / sum(beta**k for k in range(self.t[p])), p.numel())
            for p in parameters
            if self.t[p]
        ]
        return sum(a * n for a, n in ages) / sum(n for _, n in ages) if ages else math.nan


def adam(parameters, **options):
    return torch.optim.AdamW(parameters, lr=0.01, betas=(BETA1, BETA2), eps=EPSILON, weight_decay=0.1, **options)


@pytest.mark.parametrize(
    "options", [{}, {"amsgrad": True}, {"foreach": False}, {"capturable": False, "fused": True}], ids=str
)
def test_adams_moments(small, backward, bench, layers, options):
    optimizer, truth = adam(small.parameters(), **options), Adam64(small)
    found = bench(small, optimizer, "optimizer_state")
    amsgrad = options.get("amsgrad", False)
    for seed in range(6):
        optimizer.zero_grad()
        backward(small, seed, factor=0.1**seed)  # shrinking gradients: the largest second moment is not the last
        if seed < 2:
            small.head.weight.grad = None  # whose parameter is then younger than the others
        truth.see()
        values = found.step()
        assert values.keys() == NAMES if seed else values.keys() >= {"optimizer_state.age"}
        rows = layers.of(small)

        def close(name, expected, values=values):
            assert values[f"optimizer_state.{name}"].tolist() == pytest.approx(
                expected, rel=2e-5, abs=1e-9, nan_ok=True
            )

        close("momentum_ratio", [truth.ratio(row, amsgrad) for row in rows])
        close("epsilon_dominated", [truth.under_epsilon(row, amsgrad) for row in rows])
        close("age", [truth.age(row) for row in rows])
    assert 0 < truth.under_epsilon(rows[1], amsgrad) < 1, "the case would not tell a wrong share"
    assert math.isnan(values["optimizer_state.age"][2])  # frozen: there is no state


def test_the_age_of_the_first_steps_is_exact(bench):
    """With β = 0.999 the age after the first step is 0 and after the second 0.999/1.999: differences of thousands."""
    model = nn.Linear(3, 1, bias=False)
    found = bench(model, torch.optim.Adam(model.parameters(), lr=0.1), "optimizer_state")
    ages = []
    for _ in range(3):
        model.weight.grad = torch.ones(1, 3)
        ages += found.step()["optimizer_state.age"].tolist()
    b = 0.999
    assert ages == pytest.approx([0, b / (1 + b), (b + 2 * b * b) / (1 + b + b * b)], abs=1e-6)


def test_a_steady_gradient_has_momentum_ratio_one_and_noise_less(bench):
    model = nn.Linear(200, 1, bias=False)
    found = bench(model, torch.optim.Adam(model.parameters(), lr=0.0, betas=(0.9, 0.999)), "optimizer_state")
    for _ in range(20):
        model.weight.grad = torch.full((1, 200), 0.3)
        ratio = found.step()["optimizer_state.momentum_ratio"]
    assert ratio.tolist() == pytest.approx([1.0], rel=1e-5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        model.weight.grad = torch.randn(1, 200, generator=generator)
        ratio = found.step()["optimizer_state.momentum_ratio"]
    assert float(ratio) == pytest.approx(math.sqrt(0.1 / 1.9), rel=0.15)  # Σ ((1−β)βᵏ)² = (1−β)/(1+β)


def test_where_epsilon_rules(bench):
    model = nn.Linear(4, 1, bias=False)
    found = bench(model, torch.optim.Adam(model.parameters(), lr=0.1, eps=1e-8), "optimizer_state")
    model.weight.grad = torch.tensor([[1.0, 1.01e-8, 0.99e-8, 0.0]])
    assert found.step()["optimizer_state.epsilon_dominated"].tolist() == [0.5]


@pytest.mark.parametrize("centered", [True, False])
def test_rmsprop_has_an_age_and_a_share_and_no_momentum_ratio(small, backward, bench, layers, centered):
    alpha = 0.9
    optimizer = torch.optim.RMSprop(small.parameters(), lr=0.01, alpha=alpha, eps=EPSILON, centered=centered)
    found, truth = bench(small, optimizer, "optimizer_state"), Adam64(small)
    v = {p: torch.zeros_like(p, dtype=torch.float64) for p in small.parameters()}
    for seed in range(4):
        optimizer.zero_grad()
        backward(small, seed, factor=0.02)
        truth.see()
        v = {p: s if p.grad is None else alpha * s + (1 - alpha) * p.grad.double() ** 2 for p, s in v.items()}
        values = found.step()
        assert values.keys() == NAMES - {"optimizer_state.momentum_ratio"}
        rows = layers.of(small)
        ages = [truth.age(row, alpha) for row in rows]
        assert values["optimizer_state.age"].tolist() == pytest.approx(ages, rel=1e-6, abs=1e-9, nan_ok=True)
        shares = [float((torch.cat([v[p].flatten() for p in row]).sqrt() < EPSILON).double().mean()) for row in rows]
        shares[2] = shares[3] = math.nan
        assert values["optimizer_state.epsilon_dominated"].tolist() == pytest.approx(shares, nan_ok=True)


def test_the_effective_step_of_sgd_is_its_rate(small, backward, bench):
    optimizer = torch.optim.SGD(small.parameters(), lr=0.25)
    found = bench(small, optimizer, "optimizer_state")
    for seed in range(2):
        optimizer.zero_grad()
        backward(small, seed)
        values = found.step(lambda: nn.utils.clip_grad_norm_(small.parameters(), 1e-2))
        assert values.keys() == {"optimizer_state.effective_step"}
        steps = values["optimizer_state.effective_step"].tolist()
        assert [steps[i] for i in (0, 1, 4)] == pytest.approx([0.25] * 3, rel=1e-4)
        assert math.isnan(steps[2])  # frozen: no gradient, no step


def test_the_effective_step_of_adam_against_the_real_change(small, backward, bench, layers):
    found = bench(small, adam(small.parameters()), "optimizer_state")
    backward(small)
    before = {id(p): p.detach().clone() for p in small.parameters()}
    gradients = layers.map(small, torch.linalg.vector_norm)
    steps = found.step()["optimizer_state.effective_step"].tolist()
    moved = layers.map(small, torch.linalg.vector_norm, lambda p: p.detach().double() - before[id(p)].double())
    truth = [m / g if g else math.nan for m, g in zip(moved, gradients, strict=True)]
    assert steps == pytest.approx(truth, rel=1e-5, nan_ok=True)


def test_betas_and_steps_may_be_tensors(small, backward, bench):
    options = {"betas": (torch.tensor(BETA1), torch.tensor(BETA2)), "capturable": False, "foreach": False}
    values = []
    for extra in ({"betas": (BETA1, BETA2)}, options):
        torch.manual_seed(0)
        model = type(small)()
        try:
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, eps=EPSILON, **extra)
        except ValueError as error:  # as older releases of torch do without a compiler
            pytest.skip(str(error))
        found = bench(model, optimizer, "optimizer_state")
        backward(model)
        values.append(found.step()["optimizer_state.age"].tolist())
    assert values[1] == pytest.approx(values[0], abs=1e-4, nan_ok=True)


class Custom(torch.optim.Optimizer):
    """An optimizer that names its state like Adam and keeps no count of steps."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                self.state[p].setdefault("exp_avg_sq", torch.zeros_like(p))
                p.sub_(0.1)


def test_an_unknown_optimizer_has_its_effective_step_only(bench):
    model = nn.Linear(3, 1, bias=False)
    found = bench(model, Custom(model.parameters()), "optimizer_state")
    model.weight.grad = torch.tensor([[3.0, 0.0, 4.0]])
    values = found.step()
    assert values.keys() == {"optimizer_state.effective_step"}
    assert values["optimizer_state.effective_step"].tolist() == pytest.approx([0.1 * math.sqrt(3) / 5], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(bench, dtype):
    model = nn.Linear(300, 1, bias=False).to(dtype)
    optimizer, truth = adam(model.parameters()), Adam64(model)
    found = bench(model, optimizer, "optimizer_state")
    for seed in range(3):
        gradient = torch.randn(1, 300, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        model.weight.grad = gradient.to(dtype)
        truth.see()
        values = found.step()
    rel = 1e-9 if dtype == torch.float64 else 2e-2  # the moments themselves are rounded to 8 bits
    assert values["optimizer_state.momentum_ratio"].tolist() == pytest.approx([truth.ratio([model.weight])], rel=rel)
    share = truth.under_epsilon([model.weight])
    assert values["optimizer_state.epsilon_dominated"].tolist() == pytest.approx([share], abs=0.01)


def test_reading_leaves_no_state_behind(small, backward, bench):
    optimizer = adam(small.parameters())
    found = bench(small, optimizer, "optimizer_state")
    backward(small)
    found.step()
    assert small.unused.weight not in optimizer.state
