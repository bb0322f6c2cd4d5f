"""The traps of resuming, one by one, and what the resume level says."""

# ruff: noqa: NPY002  (the legacy stream is one of those that must come back)

import copy
import json
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LambdaLR, LinearLR, SequentialLR, StepLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

from dynaxx.checkpoints import CheckpointStore, capture, decode, encode, fingerprint, restore, resume_level
from dynaxx.errors import BadInput, NotApplicable


def through(state):
    tensors, tree = encode(state)
    return decode({name: t.clone() for name, t in tensors.items()}, json.loads(json.dumps(tree)))


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))


def train(model, optimizer, steps=3, scheduler=None):
    losses = []
    for _ in range(steps):
        loss = (model(torch.randn(6, 4)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
    return losses


def adam(model):
    return Adam(model.parameters(), lr=0.01)


def test_iterating_a_loader_moves_the_global_stream_so_the_loader_gets_its_own():  # T1
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


def test_moments_keep_their_dtype(identical):  # T2
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
def test_implementation_is_recorded_and_the_constructed_one_runs(then, now):  # T3
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


def test_step_counter_follows_the_implementation():  # T3: fused kernels take float32, on the parameter's device
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


def test_rate_survives_a_scheduler_built_before_the_load():  # T5
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


def test_hook_that_changes_the_rate_is_named():  # T5
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    state = through(capture(model, optimizer))
    optimizer.register_load_state_dict_post_hook(lambda o: o.param_groups[0].update(lr=0.5))
    with pytest.raises(BadInput, match=r"0\.5; 0\.1 was saved.*hooks"):
        restore(state, model, optimizer)


class Decay:
    def __init__(self, base):
        self.base = base

    def __call__(self, step):
        return self.base**step


def test_lambda_schedules(identical):  # T6
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


def test_random_streams_come_back_whatever_was_built_meanwhile(identical):  # T7, T9
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


def test_capture_changes_nothing(identical):
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


def test_state_serves_again_after_training_went_on(identical):
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


def test_extras():
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


def test_gradient_scaler(identical):
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


@pytest.fixture(scope="module")
def gloo():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("saved", ["bare", "compiled", "parallel", "both", "inner"])
@pytest.mark.parametrize("loaded", ["bare", "compiled", "parallel", "both", "inner"])
@pytest.mark.usefixtures("gloo")
def test_wrapped_models(saved, loaded):
    def wrap(model, how):
        if how in ("parallel", "both"):
            model = nn.parallel.DistributedDataParallel(model)
        if how in ("compiled", "both"):
            model = torch.compile(model, backend="eager")
        if how == "inner":
            model[0] = torch.compile(model[0], backend="eager")
        return model

    def build(how):
        bare = net()
        model = wrap(bare, how)
        return bare, model, adam(model)

    bare, model, optimizer = build(saved)
    train(bare, optimizer)
    state = through(capture(model, optimizer))
    assert set(state["model"]["state"]) == set(net().state_dict())
    other, wrapped, again = build(loaded)
    level, _ = restore(state, wrapped, again)
    compiled = {"compiled", "both", "inner"}
    assert level == ("exact" if (saved in compiled) == (loaded in compiled) else "equivalent")
    losses = train(other, again)
    restore(state, model, optimizer)
    assert train(bare, optimizer) == losses


@pytest.mark.usefixtures("gloo")
def test_sharded_models_are_not_applicable():
    whole, model = nn.Linear(4, 2), nn.Linear(4, 2)
    state = through(capture(whole, adam(whole)))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(NotApplicable, match=r"state\['model'\]\['state'\]\['weight'\] is a DTensor"):
        encode(capture(model, adam(model)))
    with pytest.raises(NotApplicable, match="Restore before sharding"):
        restore(state, model, adam(model))


class Odd(nn.Module):
    """Tied weights, a buffer that is not persistent and changes, one that grows, extra state, a version."""

    _version = 3

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("running", torch.zeros(4), persistent=False)
        self.register_buffer("cache", torch.zeros(0), persistent=False)
        self.register_buffer("wide", torch.zeros(1).expand(6), persistent=False)
        self.calls = 0
        self.versions = []

    def forward(self, x):
        self.calls += 1
        y = self.embed(x)
        self.running.mul_(0.9).add_(y.detach().mean(0))
        self.cache = torch.cat([self.cache, torch.ones(2)])
        return self.head(y + self.running)

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        self.versions.append(local_metadata.get("version"))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def test_odd_models(tmp_path, identical):
    def steps(model, optimizer, n=3):
        for _ in range(n):
            optimizer.zero_grad()
            model(torch.arange(5)).square().mean().backward()
            optimizer.step()

    model = Odd()
    optimizer = adam(model)
    steps(model, optimizer)
    store = CheckpointStore(tmp_path)
    store.save(3, capture(model, optimizer))
    fresh = Odd()
    other = adam(fresh)
    assert restore(store.load()[0], fresh, other) == ("exact", ())
    assert fresh.head.weight is fresh.embed.weight
    assert (fresh.calls, fresh.versions) == (3, [3])
    assert fresh.cache.shape == (6,)
    steps(model, optimizer)
    steps(fresh, other)
    assert identical(through(capture(fresh, other)), through(capture(model, optimizer)))


class Twice(nn.Module):
    """A model whose own names look like a wrapper's."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 2)
        self.weight = nn.Parameter(torch.randn(2, 2))
        self.bias = nn.Parameter(torch.zeros(2))


def test_names_that_look_wrapped(identical):
    model, other = Twice(), Twice()
    optimizer = adam(model)
    restore(through(capture(model, optimizer)), other, adam(other))
    assert identical(list(other.state_dict().values()), list(model.state_dict().values()))


def test_other_models_and_optimizers_are_refused_before_anything_is_written(identical):
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


def test_weights_only():
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


def level_after(change=lambda state: None, model=None, now=None, **given):
    model = model or net()
    optimizer = adam(model)
    train(model, optimizer)
    state = through(capture(model, optimizer, **given))
    change(state)
    return resume_level(state, model, optimizer, **(given if now is None else now))


def test_resume_level_says_what_lowered_it():
    assert level_after() == ("exact", ())
    assert level_after(lambda s: s["fingerprint"].update(torch="2.9.0")) == (
        "equivalent",
        (f"torch: 2.9.0 when saved, {torch.__version__} now",),
    )
    assert level_after(lambda s: s["fingerprint"].update({"threads": 64, "world size": 8})) == (
        "equivalent",
        ("threads: 64 when saved, 1 now", "world size: 8 when saved, 1 now"),
    )
    assert level_after(lambda s: s["fingerprint"].pop("compiled")) == (
        "equivalent",
        ("compiled: None when saved, False now",),
    )
    assert level_after(lambda s: s.update(random={1: s["random"][0]})) == (
        "equivalent",
        ("the random streams of rank 0 were not saved",),
    )
    assert level_after(extra={"n": Counter()}, now={}) == (
        "warm",
        ("extra['n'] was saved and is not given: it starts anew",),
    )
    assert level_after(now={"extra": {"n": Counter()}})[1] == (
        "extra['n'] was not registered when the checkpoint was saved: it starts anew",
    )
    assert level_after(scaler=torch.amp.GradScaler("cpu"), now={})[0] == "warm"
    assert level_after(lambda s: s["optimizer"]["param_groups"][0].update(initial_lr=0.1)) == (
        "warm",
        ("a learning-rate scheduler was not registered: it starts anew",),
    )
    half = net()
    state = through(capture(half, adam(half)))
    half.bfloat16()
    level, reasons = resume_level(state, half, adam(half))
    assert level == "warm"
    assert reasons[0] == "0.weight is of another dtype than when saved: values are rounded"


def test_unregistered_scheduler_is_noticed():
    model = net()
    optimizer = adam(model)
    StepLR(optimizer, 2)
    state = through(capture(model, optimizer))
    assert resume_level(state, model, optimizer)[0] == "warm"


def test_fingerprint_follows_what_it_names():
    model = net()
    first = fingerprint(model, adam(model))
    assert fingerprint(model, adam(model)) == first
    changes = {
        "threads": (torch.set_num_threads, 2, 1),
        "deterministic algorithms": (torch.use_deterministic_algorithms, True, False),
        "float32 matmul precision": (torch.set_float32_matmul_precision, "medium", "highest"),
        "default dtype": (torch.set_default_dtype, torch.float64, torch.float32),
    }
    for fact, (change, there, back) in changes.items():
        change(there)
        now = fingerprint(model, adam(model))
        change(back)
        assert [k for k in first if now[k] != first[k]] == [fact]
