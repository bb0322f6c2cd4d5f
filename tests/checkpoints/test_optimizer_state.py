"""Moments keep their dtype, rates their value, and the constructed implementation runs (traps T2, T3, T5)."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from dynaxx.checkpoints import capture, restore
from dynaxx.errors import BadInput


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))


def adam(model):
    return Adam(model.parameters(), lr=0.01)


class MasterAdam(Optimizer):
    """Keeps float32 moments of bfloat16 parameters, in a list and in a dict, one of them shared."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        self.state["all"].setdefault("steps", torch.zeros(1)).add_(1)  # belongs to no parameter
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    moment = torch.zeros_like(p, dtype=torch.float32)
                    state.update(moment=moment, nested={"list": [moment, (p.double(),)]}, rule="plain", seen=0)
                state["moment"].mul_(0.9).add_(p.grad.float())
                state["nested"]["list"][0].add_(1e-4)
                state["nested"]["list"][1][0].add_(0.1)
                state["seen"] += 1
                p.sub_((group["lr"] * state["moment"]).to(p.dtype))


def test_moments_keep_their_dtype(identical, through):  # T2
    torch.manual_seed(0)
    model = nn.Linear(4, 2).bfloat16()
    optimizer = MasterAdam(model.parameters())

    def steps(model, optimizer, n):
        for k in range(n):
            optimizer.zero_grad()
            (model(torch.ones(1, 4).bfloat16() * k) - 1).square().mean().backward()
            optimizer.step()

    steps(model, optimizer, 3)
    state = through(capture(model, optimizer))
    naive = MasterAdam(model.parameters())
    naive.load_state_dict({"state": state["optimizer"]["state"], "param_groups": state["optimizer"]["param_groups"]})
    assert naive.state[model.weight]["moment"].dtype == torch.bfloat16, "the trap is there"

    fresh = nn.Linear(4, 2).bfloat16()
    other = MasterAdam(fresh.parameters())
    assert restore(state, fresh, other)[0] == "exact"
    loaded = other.state[fresh.weight]
    assert loaded["moment"].dtype == torch.float32
    assert loaded["nested"]["list"][1][0].dtype == torch.float64
    assert loaded["moment"] is loaded["nested"]["list"][0], "tied moments stay tied"
    assert loaded["rule"] == "plain"
    kept = copy.deepcopy(state)
    steps(model, optimizer, 5)
    steps(fresh, other, 5)
    assert identical(through(capture(fresh, other)), through(capture(model, optimizer)))
    assert identical(state, kept)


@pytest.mark.parametrize("then", [{}, {"foreach": False}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("now", [{}, {"foreach": False}, {"fused": True}])
def test_implementation_is_recorded_and_the_constructed_one_runs(then, now, through, train):  # T3
    model = net()
    optimizer = AdamW(model.parameters(), **then)
    train(model, optimizer)
    state = through(capture(model, optimizer))
    other = AdamW(model.parameters(), **now)
    level, reasons = restore(state, model, other)
    if then == now:
        assert (level, reasons) == ("exact", ())
    else:
        assert level == "equivalent"
        assert reasons[0].startswith("optimizer implementation: ")
    assert {k: other.param_groups[0][k] for k in now} == now
    train(model, other)
    assert other.state[model[0].weight]["step"] == 6


def test_step_counter_follows_the_implementation(
    through, train
):  # T3: fused kernels take float32, on the parameter's device
    torch.set_default_dtype(torch.float64)
    try:
        model = nn.Linear(4, 2)
        optimizer = AdamW(model.parameters(), foreach=False)
        train(model, optimizer)
        assert optimizer.state[model.weight]["step"].dtype == torch.float64
        other = AdamW(model.parameters(), fused=True)
        restore(through(capture(model, optimizer)), model, other)
        assert other.state[model.weight]["step"].dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_rate_survives_a_scheduler_built_before_the_load(through, train):  # T5
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    scheduler = CosineAnnealingLR(optimizer, 10)
    train(model, optimizer, 4, scheduler)
    rate = optimizer.param_groups[0]["lr"]
    assert rate != 0.1
    state = through(capture(model, optimizer, scheduler=scheduler))
    other = SGD(model.parameters(), lr=0.1)
    again = CosineAnnealingLR(other, 10)
    restore(state, model, other, scheduler=again)
    assert other.param_groups[0]["lr"] == rate == again.get_last_lr()[0]


def test_hook_that_changes_the_rate_is_named(through):  # T5
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    state = through(capture(model, optimizer))
    optimizer.register_load_state_dict_post_hook(lambda o: o.param_groups[0].update(lr=0.5))
    with pytest.raises(BadInput, match=r"0\.5; 0\.1 was saved.*hooks"):
        restore(state, model, optimizer)
