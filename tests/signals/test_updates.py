"""Update norm, update ratio and parameter norm against the parameters' real change, for several optimizers."""

import math

import pytest
import torch
from torch import nn

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_they_are_those_of_the_parameters_real_change(small, backward, bench, layers, make):
    optimizer = make(small.parameters())
    found = bench(small, optimizer, "update_norm", "update_ratio", "parameter_norm")
    for seed in range(4):
        optimizer.zero_grad()
        backward(small, seed)
        before = {id(p): p.detach().clone() for p in small.parameters()}
        values = found.step()
        norm = torch.linalg.vector_norm
        updates = layers.map(small, norm, lambda p, then=before: p.detach().double() - then[id(p)].double())
        sizes = layers.map(small, norm, lambda p, then=before: then[id(p)])
        after = layers.map(small, norm, lambda p: p)
        assert values["update_norm"].tolist() == pytest.approx(updates, rel=1e-6)
        assert values["parameter_norm"].tolist() == pytest.approx(after, rel=1e-6)
        ratios = [u / s for u, s in zip(updates, sizes, strict=True)]
        assert values["update_ratio"].tolist() == pytest.approx(ratios, rel=1e-6)
        whole = math.dist(updates, [0] * 5) / math.dist(sizes, [0] * 5)
        assert float(values["update_ratio.total"]) == pytest.approx(whole, rel=1e-6)
        assert updates[2] == 0  # frozen
        assert updates[4] > 0


def test_sgd_moves_by_its_rate_times_the_gradient(small, backward, bench, layers):
    found = bench(small, torch.optim.SGD(small.parameters(), lr=0.25), "update_norm")
    backward(small)
    truth = [0.25 * value for value in layers.map(small, torch.linalg.vector_norm)]
    assert found.step()["update_norm"].tolist() == pytest.approx(truth, rel=1e-5)


def test_a_layer_of_zeros(bench):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for p in model.parameters():
        nn.init.zeros_(p)
    found = bench(model, torch.optim.SGD(model.parameters(), lr=1.0), "update_ratio")
    model[0].weight.grad = torch.ones(2, 2)
    moved, stayed = found.step()["update_ratio"].tolist()
    assert moved == math.inf
    assert math.isnan(stayed)
    model.zero_grad()
    assert found.step()["update_ratio"].tolist()[0] == 0.0


def test_updates_far_smaller_than_the_parameters_are_not_rounded_away(bench):
    """1000.0 + 1e-4·k in float32 moves in steps of 6.1e-5: what is measured is the change that was really made."""
    model = nn.Linear(8, 1, bias=False)
    nn.init.constant_(model.weight, 1000.0)
    found = bench(model, torch.optim.SGD(model.parameters(), lr=1.0), "update_norm", "update_ratio")
    model.weight.grad = torch.linspace(1e-5, 1e-3, 8)[None]
    values = found.step()
    truth = (model.weight.detach().double() - 1000).norm()
    assert values["update_norm"].tolist() == pytest.approx([float(truth)], rel=1e-6)
    assert values["update_ratio"].tolist() == pytest.approx([float(truth) / (1000 * 8**0.5)], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(small, backward, bench, layers, dtype):
    backward(small)
    for p in small.parameters():
        p.data, p.grad = p.data.to(dtype), None if p.grad is None else p.grad.to(dtype)
    before = {id(p): p.detach().clone() for p in small.parameters()}
    found = bench(small, torch.optim.SGD(small.parameters(), lr=0.1), "update_norm")
    updates = found.step()["update_norm"].tolist()
    truth = layers.map(
        small, torch.linalg.vector_norm, lambda p, then=before: p.detach().double() - then[id(p)].double()
    )
    assert updates == pytest.approx(truth, rel=1e-2 if dtype == torch.bfloat16 else 1e-12)
