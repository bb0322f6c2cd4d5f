"""Several optimizers as one: the same bits as apart, one schedule, one checkpoint, one watch."""

import copy

import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.errors import BadInput
from dynaxx.optim import Joint

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def parts(model):
    matrices = [model[2].weight]
    rest = [p for p in model.parameters() if p is not matrices[0]]
    return torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=0.01)


def train(model, step, clear, steps):
    for _ in range(steps):
        model(X).square().mean().backward()
        step()
        clear()


def test_together_is_one_after_the_other():
    apart, joined = net(), net()
    one, other = parts(apart)
    joint = Joint(*parts(joined))
    train(apart, lambda: (one.step(), other.step()), lambda: (one.zero_grad(), other.zero_grad()), 5)
    train(joined, joint.step, joint.zero_grad, 5)
    for a, b in zip(apart.parameters(), joined.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_schedule_moves_every_part():
    joint = Joint(*parts(net()))
    schedule = torch.optim.lr_scheduler.LambdaLR(joint, lambda _: 0.5)
    assert [group["lr"] for part in joint.parts for group in part.param_groups] == [0.01, 0.005]
    assert schedule.get_last_lr() == [0.01, 0.005]


def test_a_checkpoint_goes_on_bit_for_bit():
    whole = net()
    joint = Joint(*parts(whole))
    train(whole, joint.step, joint.zero_grad, 3)
    half = copy.deepcopy(whole)
    saved = copy.deepcopy(joint.state_dict())
    train(whole, joint.step, joint.zero_grad, 3)
    resumed = Joint(*parts(half))
    resumed.load_state_dict(saved)
    train(half, resumed.step, resumed.zero_grad, 3)
    for a, b in zip(whole.parameters(), half.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_closure_is_called_once():
    model, calls = net(), []
    joint = Joint(*parts(model))

    def closure():
        calls.append(1)
        joint.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        return loss

    assert joint.step(closure).item() > 0
    assert len(calls) == 1


def test_a_watched_run_sees_all_of_it_and_resumes(tmp_path):
    def loop(folder, first, last, resume=False):
        model = net()
        joint = Joint(*parts(model))
        run = dynaxx.watch(model, joint, folder, resume=resume, quiet=True)
        for _ in range(first, last):
            loss = model(X).square().mean()
            loss.backward()
            joint.step()
            joint.zero_grad()
            run.log(loss=loss)
        run.save()
        run.close()
        return model

    whole = loop(tmp_path / "whole", 0, 6)
    loop(tmp_path / "parts", 0, 3)
    resumed = loop(tmp_path / "parts", 3, 6, resume=True)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    view = dynaxx.open_run(tmp_path / "whole")
    assert (view["grad_norm"].values > 0).all()
    assert (view["update_norm"].values > 0).all()


def test_what_cannot_be_joined_is_refused(tmp_path):
    model = net()
    one, other = parts(model)
    with pytest.raises(BadInput, match="none"):
        Joint()
    with pytest.raises(BadInput, match="Got list"):
        Joint([one, other])
    with pytest.raises(BadInput, match="updated twice"):
        Joint(one, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(BadInput, match="join them anew"):
        Joint(one, other).add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(BadInput, match=r"dynaxx\.optim\.Joint"):
        dynaxx.watch(model, [one, other], tmp_path / "run")
