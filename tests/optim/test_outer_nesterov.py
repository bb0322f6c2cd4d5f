"""The outer Nesterov step against its recursion, Lookahead against its formula; half precision, resuming, watching."""

import copy
import io

import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.errors import BadInput
from dynaxx.optim._outer_nesterov import OuterNesterov


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


X = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def run(model, optimizer, steps, schedule=None):
    for _ in range(steps):
        model(X).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if schedule is not None:
            schedule.step()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_is_the_recursion(momentum):
    model, free = net(), net()
    optimizer = OuterNesterov(torch.optim.AdamW(model.parameters(), lr=0.05), every=3, rate=0.7, momentum=momentum)
    inner = torch.optim.AdamW(free.parameters(), lr=0.05)
    slow = [p.detach().clone() for p in free.parameters()]
    velocity = [torch.zeros_like(s) for s in slow]
    for _ in range(4):
        run(free, inner, 3)
        with torch.no_grad():
            for i, p in enumerate(free.parameters()):
                d = slow[i] - p
                velocity[i] = momentum * velocity[i] + d
                slow[i] = slow[i] - 0.7 * (d + momentum * velocity[i])
                if momentum == 0:
                    torch.testing.assert_close(slow[i], (slow[i] + 0.7 * d) + 0.7 * (p - slow[i] - 0.7 * d))
                p.copy_(slow[i])
    run(model, optimizer, 12)
    for p, s in zip(model.parameters(), slow, strict=True):
        torch.testing.assert_close(p.detach(), s, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("inner", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("at", [0, 4, 6])
def test_it_resumes_bit_for_bit_half_precision_included(inner, at):
    def parts():
        model = net().bfloat16()
        return model, OuterNesterov(inner(model.parameters(), lr=0.05), every=3)

    def go(model, optimizer, steps):
        for _ in range(steps):
            model(X.bfloat16()).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    model, optimizer = parts()
    go(model, optimizer, at)
    buffer = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], buffer)
    go(model, optimizer, 8 - at)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    kept = copy.deepcopy(saved[1])
    other, again = parts()
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    go(other, again, 8 - at)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    state = again.state[next(other.parameters())]
    assert state["slow_weights"].dtype is torch.float32
    assert repr(kept) == repr(saved[1]), "the state was copied"


def test_schedulers_scalers_and_runs_take_it(tmp_path):
    model = net()
    optimizer = OuterNesterov(torch.optim.SGD(model.parameters(), lr=0.1), every=2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    with dynaxx.watch(model, optimizer, tmp_path / "run", scheduler=schedule, quiet=True) as watched:
        run(model, optimizer, 4, schedule)
        assert watched.step == 4
        watched.save()
    assert optimizer.inner.param_groups[0]["lr"] == 0.025
    run(model, optimizer, 3, schedule)
    other = net()
    again = OuterNesterov(torch.optim.SGD(other.parameters(), lr=0.1), every=2)
    schedule = torch.optim.lr_scheduler.StepLR(again, 2, 0.5)
    with dynaxx.watch(other, again, tmp_path / "run", scheduler=schedule, resume=True, quiet=True):
        run(other, again, 3, schedule)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_parameter_joins_with_its_first_gradient_and_closures_pass():
    model = net()
    optimizer = OuterNesterov(torch.optim.Adam(model[0].parameters(), lr=0.1), every=1)
    optimizer.add_param_group({"params": list(model[2].parameters())})
    assert len(optimizer.inner.param_groups) == 2

    def closure():
        loss = model[0](X).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure) is not None
    assert "slow_weights" in optimizer.state[model[0].weight]
    assert not optimizer.state.get(model[2].weight)
    run(model, optimizer, 1)
    assert "slow_weights" in optimizer.state[model[2].weight]


def test_bad_input():
    inner = torch.optim.SGD(net().parameters(), lr=0.1)
    for options, message in (({"every": 0}, "every"), ({"rate": 0.0}, "rate"), ({"momentum": 1.0}, "momentum")):
        with pytest.raises(BadInput, match=rf"OuterNesterov\({message}"):
            OuterNesterov(inner, **options)
    with pytest.raises(BadInput, match="Got Sequential"):
        OuterNesterov(net())
