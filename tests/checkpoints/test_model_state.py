"""Models come back wrapped or bare, with tied weights, passing buffers and names of any kind."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import Adam

from dynaxx.checkpoints import CheckpointStore, capture, encode, restore
from dynaxx.errors import NotApplicable


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))


def adam(model):
    return Adam(model.parameters(), lr=0.01)


@pytest.fixture(scope="module")
def gloo():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("saved", ["bare", "compiled", "parallel", "both", "inner"])
@pytest.mark.parametrize("loaded", ["bare", "compiled", "parallel", "both", "inner"])
@pytest.mark.usefixtures("gloo")
def test_wrapped_models(saved, loaded, through, train):
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
def test_sharded_models_are_not_applicable(through):
    whole, model = nn.Linear(4, 2), nn.Linear(4, 2)
    state = through(capture(whole, adam(whole)))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(NotApplicable, match=r"state\['model'\]\['state'\]\['weight'\] is a DTensor"):
        encode(capture(model, adam(model)))
    with pytest.raises(NotApplicable, match="Read it with ShardedStore"):
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


def test_odd_models(tmp_path, identical, through):
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


def test_names_that_look_wrapped(identical, through):
    model, other = Twice(), Twice()
    optimizer = adam(model)
    restore(through(capture(model, optimizer)), other, adam(other))
    assert identical(list(other.state_dict().values()), list(model.state_dict().values()))
