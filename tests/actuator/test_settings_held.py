"""Momentum, ε and the band of the rate act as a loop that sets them would, and are put back."""

import math

import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.actuator.rate_band import RateBand
from dynaxx.errors import BadInput


def pair(make):
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    return models, [make(model.parameters()) for model in models]


def steps(models, optimizers, before, count=8):
    for i in range(count):
        before(i)
        for model, optimizer in zip(models, optimizers, strict=True):
            model(torch.full((1, 3), 0.1 + 0.1 * i)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert torch.equal(models[0].weight, models[1].weight), i


@pytest.mark.parametrize(
    ("make", "key", "low"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.99), "momentum", 0.9),
        (lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.995, 0.999)), "betas", (0.9, 0.999)),
    ],
)
def test_momentum_is_lowered_and_put_back(tmp_path, make, key, low):
    models, optimizers = pair(make)
    high = optimizers[0].param_groups[0][key]
    run = dynaxx.watch(models[1], optimizers[1], tmp_path / "run", quiet=True)

    def before(i):
        if i == 2:
            run.apply("momentum", most=0.9, steps=3)
        optimizers[0].param_groups[0][key] = low if 2 <= i < 5 else high
        assert optimizers[1].param_groups[0][key] == high

    steps(models, optimizers, before)
    run.close()


def test_epsilon_is_lowered(tmp_path):
    models, optimizers = pair(lambda p: torch.optim.Adam(p, lr=0.1, eps=1.0))
    run = dynaxx.watch(models[1], optimizers[1], tmp_path / "run", quiet=True)

    def before(i):
        if i == 2:
            run.apply("epsilon", value=0.0, most=1e-8, steps=3)
        optimizers[0].param_groups[0]["eps"] = 1e-8 if 2 <= i < 5 else 1.0

    steps(models, optimizers, before)
    run.close()


PLANNED = (0.01, 0.1, 0.1, 2.0, 1.0, 0.5, 0.05, 0.1)


@pytest.mark.parametrize(
    ("arguments", "held"),
    [
        ({"most": 0.1}, (0.01, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05, 0.1)),
        ({"least": 0.1}, (0.1, 0.1, 0.1, 2.0, 1.0, 0.5, 0.1, 0.1)),
        ({"least": 0.2, "falls": (2, 6)}, (0.2, 0.2, 0.15, 2.0, 1.0, 0.5, 0.05, 0.1)),
        ({"most": 0.1, "shape": True}, (0.01, 0.1, 0.1, 0.1, 0.05, 0.025, 0.0025, 0.005)),
    ],
)
def test_a_rate_stays_within_its_band(tmp_path, arguments, held):
    models, optimizers = pair(lambda p: torch.optim.SGD(p, lr=1.0))
    run = dynaxx.watch(models[1], optimizers[1], tmp_path / "run", quiet=True)
    run.apply("rate_band", **arguments)

    def before(i):
        optimizers[0].param_groups[0]["lr"], optimizers[1].param_groups[0]["lr"] = held[i], PLANNED[i]

    for i in range(len(PLANNED)):
        before(i)
        for model, optimizer in zip(models, optimizers, strict=True):
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.testing.assert_close(models[0].weight, models[1].weight)
        assert optimizers[1].param_groups[0]["lr"] == PLANNED[i]
    run.close()


def test_the_highest_rate_is_in_the_checkpoint():
    band = RateBand(most=0.1, shape=True)
    assert band.state_dict() == {"highest": 0.1, "last": 0.0}
    band.load_state_dict({"highest": 2.0})
    assert band.state_dict() == {"highest": 2.0, "last": 0.0}
    assert RateBand(least=0.1).state_dict() == {"highest": None, "last": 0.0}


def test_a_bump_that_is_over_leaves_the_schedule_as_it_is(tmp_path):
    model = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    run.apply("rate_band", most=0.1, shape=True)
    moved = []
    for rate in (0.1, 3.5, 3.4, 3.2, 0.09, 0.08):
        optimizer.param_groups[0]["lr"], before = rate, model.weight.detach().clone()
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        moved.append(float((before - model.weight.detach()).mean()))
    run.close()
    assert moved == pytest.approx([0.1, 0.1, 0.1 * 3.4 / 3.5, 0.1 * 3.2 / 3.5, 0.09, 0.08], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("momentum", {"most": 1.0}, "most=...\\) must be in \\[0, 1\\). Got 1.0"),
        ("momentum", {}, "the groups of Adagrad have neither momentum nor β₁"),
        ("rate_band", {"least": -1.0}, "least=...\\) must be at least 0 and finite. Got -1.0"),
        ("rate_band", {"least": 2.0, "most": 1.0}, "must be positive, finite and at least 2. Got 1.0"),
        ("rate_band", {"least": 0.1, "falls": (5, 5)}, "must be two rising steps. Got \\[5, 5\\]"),
        ("rate_band", {"most": math.nan}, "must be positive, finite"),
        ("epsilon", {"value": 1.0, "most": 0.1}, "most=...\\) must be positive, finite and at least 1. Got 0.1"),
    ],
)
def test_what_is_out_of_range_is_refused(tmp_path, name, arguments, said):
    model = nn.Linear(2, 1)
    run = dynaxx.watch(model, torch.optim.Adagrad(model.parameters()), tmp_path / "run", quiet=True)
    with pytest.raises(BadInput, match=said):
        run.apply(name, **arguments)
    run.close()
