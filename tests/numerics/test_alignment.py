import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from dynaxx.core.objective import Objective
from dynaxx.numerics.alignment import correlations, match_activations, match_weights
from dynaxx.numerics.permutation import Symmetry
from dynaxx.numerics.symmetry import state, symmetry


def entropy(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


class Attentive(nn.Module):
    """A residual stream, attention heads and a hidden layer."""

    def __init__(self):
        super().__init__()
        self.inner, self.attention = nn.Linear(5, 12), nn.MultiheadAttention(12, 3, batch_first=True)
        self.norm, self.up, self.down, self.head = (
            nn.LayerNorm(12), nn.Linear(12, 10), nn.Linear(10, 12), nn.Linear(12, 3)
        )  # fmt: skip

    def forward(self, x):
        x = self.inner(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head((x + self.down(functional.gelu(self.up(self.norm(x))))).mean(1))


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two, self.head = (
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 7, 3), nn.Linear(7 * 16, 3)
        )  # fmt: skip

    def forward(self, x):
        return self.head(self.two(self.norm(self.one(x)).relu()).relu().flatten(1))


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)), (5,)),
    "attentive": (Attentive, (4, 5)),
    "images": (Images, (1, 8, 8)),
}


def case(name):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    objective = Objective(make(), entropy, [(torch.randn(n, *shape), torch.randint(0, 3, (n,))) for n in (30, 17)])
    return objective, state(objective), symmetry(objective)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("by", ["weights", "activations"])
def test_a_reordered_copy_is_put_back(name, by):
    """With a little noise on it, so that the match is not exact."""
    objective, here, found = case(name)
    hidden = found.random(5)
    noisy = {k: t + 0.02 * t.std() * torch.randn_like(t) if t.numel() > 1 and t.is_floating_point() else t
             for k, t in here.items()}  # fmt: skip
    there = found.apply({k: t.abs() if "var" in k else t for k, t in noisy.items()}, hidden)
    if by == "weights":
        matched = match_weights(found, here, there, restarts=3)
    else:
        matched = match_activations(found, objective, here, there, restarts=3)
    back = found.apply(there, matched.permutation)
    assert matched.value > matched.start
    for key in objective.leaves():
        assert torch.equal(back[key], noisy[key]), key


def test_weight_matching_finds_the_best_of_all_orders():
    """Two groups of four: 576 orders, enumerated."""
    torch.manual_seed(1)
    shapes = {"a": (4, 3), "b": (4, 4), "c": (2, 4)}
    found = Symmetry.of({"a": ("x", None), "b": ("y", "x"), "c": (None, "y")}, shapes)
    one, two = ({k: torch.randn(s, dtype=torch.float64) for k, s in shapes.items()} for _ in range(2))
    best = max(
        sum(float((one[k] * found.moved(k, two[k], {"x": torch.tensor(x), "y": torch.tensor(y)})).sum()) for k in one)
        for x in itertools.permutations(range(4))
        for y in itertools.permutations(range(4))
    )
    matched = match_weights(found, one, two, restarts=20)
    assert matched.value == pytest.approx(best, rel=1e-12)
    assert matched.spread <= matched.value
    assert match_weights(found, one, two, restarts=20).value == matched.value


def test_a_group_on_both_axes_of_a_matrix_never_loses():
    torch.manual_seed(2)
    found = Symmetry.of({"w": ("x", "x")}, {"w": (7, 7)})
    one, two = {"w": torch.randn(7, 7)}, {"w": torch.randn(7, 7)}
    assert match_weights(found, one, two, restarts=1).value >= match_weights(found, one, two, restarts=1).start
    best = max(float((one["w"] * two["w"][list(p)][:, list(p)]).sum()) for p in itertools.permutations(range(7)))
    assert match_weights(found, one, two, restarts=40).value == pytest.approx(best, rel=1e-4)


def test_correlations_are_those_of_numpy():
    objective, here, found = case("mlp")
    torch.manual_seed(9)
    other = {k: torch.randn_like(t) for k, t in here.items()}
    inputs = torch.cat([batch[0] for batch in objective.batches])

    def layers(w):
        one = functional.linear(inputs, w["0.weight"], w["0.bias"])
        two = functional.linear(one.relu(), w["2.weight"], w["2.bias"])
        return [one, one.relu(), two, two.relu()]

    def pearson(a, b):
        with np.errstate(invalid="ignore", divide="ignore"):
            units = a.shape[1]
            return np.nan_to_num(np.corrcoef(a.double().numpy().T, b.double().numpy().T)[:units, units:])

    tables = correlations(found, objective, here, other)
    pairs = [pearson(a, b) for a, b in zip(layers(here), layers(other), strict=True)]
    by_size = {table.shape[0]: table.numpy() for table in tables.values()}
    np.testing.assert_allclose(by_size[9], pairs[0] + pairs[1], atol=1e-5)
    np.testing.assert_allclose(by_size[8], pairs[2] + pairs[3], atol=1e-5)
