"""The traps of resuming, one by one, and what the resume level says."""

# ruff: noqa: NPY002  (the legacy stream is one of those that must come back)

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LambdaLR, LinearLR, SequentialLR, StepLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

from dynaxx.checkpoints import capture, encode, restore
from dynaxx.errors import BadInput


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))


def adam(model):
    return Adam(model.parameters(), lr=0.01)


def test_iterating_a_loader_moves_the_global_stream_so_the_loader_gets_its_own(through):  # T1
    data = TensorDataset(torch.arange(32.0))
    model = nn.Linear(1, 1)
    optimizer = adam(model)

    def epochs(generator, n):
        loader = DataLoader(data, batch_size=8, shuffle=True, generator=generator)
        return [batch[0].tolist() for _ in range(n) for batch in loader]

    before = torch.get_rng_state()
    list(DataLoader(data))
    assert not torch.equal(before, torch.get_rng_state()), "the trap is there"

    generator = torch.Generator().manual_seed(1)
    epochs(generator, 1)
    state = through(capture(model, optimizer, extra={"loader": generator}))
    expected, draw = epochs(generator, 2), torch.rand(1)
    other = torch.Generator()
    assert restore(state, model, optimizer, extra={"loader": other}) == ("exact", ())
    assert epochs(other, 2) == expected
    assert torch.equal(torch.rand(1), draw), "the loader left the global stream alone"


class Decay:
    def __init__(self, base):
        self.base = base

    def __call__(self, step):
        return self.base**step


def test_lambda_schedules(through):  # T6
    model = net()
    optimizer = SGD([{"params": [p]} for p in model.parameters()], lr=0.1)
    scheduler = LambdaLR(optimizer, [Decay(0.9), *[lambda s: 1.0] * 5])
    state = through(capture(model, optimizer, scheduler=scheduler))
    assert state["scheduler"]["state"]["lr_lambdas"] == [{"base": 0.9}, *[None] * 5]
    other = LambdaLR(optimizer, [Decay(0.1), *[lambda s: 1.0] * 5])
    restore(state, model, optimizer, scheduler=other)
    assert other.lr_lambdas[0].base == 0.9
    scheduler.lr_lambdas[0].rule = len
    with pytest.raises(
        BadInput, match=r"\['scheduler'\]\['state'\]\['lr_lambdas'\]\[0\]\['rule'\] is a function \(len"
    ):
        encode(capture(model, optimizer, scheduler=scheduler))


def test_random_streams_come_back_whatever_was_built_meanwhile(through):  # T7, T9
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    random.gauss(0, 1)  # leaves a second number behind
    np.random.standard_normal()
    model = net()
    optimizer = adam(model)
    state = through(capture(model, optimizer))

    def draws():
        return torch.rand(2).tolist(), np.random.standard_normal(2).tolist(), random.gauss(0, 1), random.random()

    expected = draws()
    fresh = net()
    restore(state, fresh, adam(fresh))
    assert draws() == expected


def test_capture_changes_nothing(identical, through, train):
    model = net()
    optimizer = adam(model)
    scheduler = StepLR(optimizer, 2)
    train(model, optimizer, 3, scheduler)
    before = through(capture(model, optimizer, scheduler=scheduler))
    pointers = [p.data_ptr() for p in model.parameters()]
    state = capture(model, optimizer, scheduler=scheduler)
    encode(state)
    assert identical(through(capture(model, optimizer, scheduler=scheduler)), before)
    assert [p.data_ptr() for p in model.parameters()] == pointers


def test_state_serves_again_after_training_went_on(identical, through, train):
    model = net()
    optimizer = Adam(model.parameters(), lr=torch.tensor(0.01), capturable=False, foreach=False)
    parts = [LinearLR(optimizer), CyclicLR(optimizer, 0.01, 0.02, cycle_momentum=False)]
    scheduler = SequentialLR(optimizer, parts, [2])  # loading a CyclicLR takes its state apart
    ema = AveragedModel(model)
    train(model, optimizer, 3, scheduler)
    state = through(capture(model, optimizer, scheduler=scheduler, extra={"ema": ema}))
    kept = copy.deepcopy(state)
    losses = []
    for _ in range(2):
        restore(state, model, optimizer, scheduler=scheduler, extra={"ema": ema})
        losses.append(train(model, optimizer, 5, scheduler))
        ema.update_parameters(model)
    assert losses[0] == losses[1]
    assert identical(state, kept)


class Counter:
    def __init__(self, n=0):
        self.n = n

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        self.n = state["n"]


def test_extras(through):
    model = net()
    optimizer = adam(model)

    def build(seed):
        return {
            "torch": torch.Generator().manual_seed(seed),
            "numpy": np.random.default_rng(seed),
            "mt": np.random.Generator(np.random.MT19937(seed)),
            "legacy": np.random.RandomState(seed),
            "python": random.Random(seed),
            "counter": Counter(seed),
            "ema": AveragedModel(nn.Linear(1, 1)),
        }

    def draws(extra):
        return (
            torch.rand(3, generator=extra["torch"]).tolist(),
            extra["numpy"].normal(size=3).tolist(),
            extra["mt"].normal(size=3).tolist(),
            extra["legacy"].normal(size=3).tolist(),
            extra["python"].random(),
            extra["counter"].n,
            extra["ema"].module.weight.tolist(),
        )

    first, second = build(1), build(2)
    draws(first)
    state = through(capture(model, optimizer, extra=first))
    assert restore(state, model, optimizer, extra=second) == ("exact", ())
    assert draws(second) == draws(first)
    second["counter"] = torch.Generator()
    with pytest.raises(BadInput, match=r"extra\['counter'\].*saved with Counter. Got Generator"):
        restore(state, model, optimizer, extra=second)
    with pytest.raises(BadInput, match=r"extra\['numpy'\].*saved with PCG64. Got MT19937"):
        restore(state, model, optimizer, extra={**build(2), "numpy": build(2)["mt"]})
    with pytest.raises(BadInput, match=r"extra\['position'\].*Got int: wrap"):
        capture(model, optimizer, extra={"position": 3})


def test_gradient_scaler(identical, through):
    model = net()
    optimizer = adam(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)

    def steps(model, optimizer, scaler, n):
        for _ in range(n):
            optimizer.zero_grad()
            scaler.scale((model(torch.randn(6, 4)) - 1).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        return scaler.get_scale()

    assert steps(model, optimizer, scaler, 3) == 8.0
    state = through(capture(model, optimizer, scaler=scaler))
    expected = steps(model, optimizer, scaler, 4)
    after = through(capture(model, optimizer, scaler=scaler))
    fresh = net()
    other, again = adam(fresh), torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=9)
    assert restore(state, fresh, other, scaler=again) == ("exact", ())
    assert steps(fresh, other, again, 4) == expected
    assert identical(through(capture(fresh, other, scaler=again)), after)
    off = through(capture(fresh, other, scaler=torch.amp.GradScaler("cpu", enabled=False)))
    with pytest.raises(BadInput, match="GradScaler refuses the saved state"):
        restore(off, fresh, other, scaler=again)


def test_other_models_and_optimizers_are_refused_before_anything_is_written(identical, through, train):
    model = net()
    optimizer = adam(model)
    train(model, optimizer)
    state = through(capture(model, optimizer))

    def refused(other, build, says):
        optimizer = build(other)
        before = through(capture(other, optimizer))
        with pytest.raises(BadInput, match=says):
            restore(state, other, optimizer)
        return identical(through(capture(other, optimizer)), before)

    assert refused(net().append(nn.Linear(2, 2)), adam, r"the checkpoint lacks 4\.weight, 4\.bias")
    assert refused(net()[:3], adam, r"the model lacks 3\.weight, 3\.bias")
    wide = net()
    wide[0] = nn.Linear(5, 8)
    assert refused(wide, adam, r"0\.weight \(8, 4\) saved, \(8, 5\) in the model")
    assert refused(net(), lambda m: SGD(m.parameters(), lr=0.1), "saved with Adam. Got SGD")
    assert refused(net(), lambda m: Adam(list(m.parameters())[:-1]), r"groups of \[6\] parameters.* \[5\]")
    assert refused(
        net(), lambda m: Adam(list(m.parameters())[::-1]), r"parameter 0 of group 0 was '0.weight' and is '3.bias'"
    )
    optimizer = adam(model)
    state = through(capture(model, optimizer, scheduler=StepLR(optimizer, 1)))
    with pytest.raises(BadInput, match=r"scheduler.*saved with StepLR. Got CosineAnnealingLR"):
        restore(state, model, optimizer, scheduler=CosineAnnealingLR(optimizer, 3))
    chain = SequentialLR(optimizer, [LinearLR(optimizer), StepLR(optimizer, 1)], [1])
    with pytest.raises(BadInput, match=r"Got SequentialLR of LinearLR, StepLR"):
        restore(state, model, optimizer, scheduler=chain)


def test_weights_only(through, train):
    model = net()
    optimizer = adam(model)
    train(model, optimizer)
    state = through(capture(model, optimizer))
    torch.manual_seed(5)
    other = net()
    before = torch.get_rng_state()
    assert restore(state, other, None) == ("warm", ("only the weights are restored",))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(other[0].weight, model[0].weight)
    light = through(capture(model, None))
    assert light["optimizer"] is None
    assert restore(light, other, adam(other))[0] == "warm"
