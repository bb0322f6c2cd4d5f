"""What several gloo ranks do with a sharded store: run as a script it is one rank."""

import os
import signal
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from dynaxx.checkpoints import capture, restore
from dynaxx.checkpoints import tensorfile as tensorfile_module
from dynaxx.checkpoints.sharded import ShardedStore
from dynaxx.checkpoints.store import CheckpointStore
from dynaxx.errors import BadInput, CorruptData, DynaxxWarning, NotApplicable, NotSaved

CASES = {}
PLACES = {
    "rows": (Shard(0), (7, 3), torch.float32),  # 7 rows do not divide
    "columns": (Shard(1), (2, 5), torch.float64),
    "one row": (Shard(0), (1, 4), torch.bfloat16),  # most ranks hold nothing
    "copy": (Replicate(), (3,), torch.float32),
    "bytes": (Shard(0), (9,), torch.uint8),
    "flags": (Shard(0), (5, 2), torch.bool),
    "nothing": (Shard(0), (0, 4), torch.float32),
    "scalar": (Replicate(), (), torch.int64),
}


def case(function):
    CASES[function.__name__] = function
    return function


def whole(step):
    """The truth, computable anywhere."""
    draw = torch.Generator().manual_seed(step)
    tensors = {
        name: torch.randint(0, 99, shape, generator=draw).to(dtype) for name, (_, shape, dtype) in PLACES.items()
    }
    return {
        "cut": tensors,
        "plain": [torch.randn(4, 6, generator=draw).t(), torch.tensor(step)],
        "complex": torch.randn(3, generator=draw, dtype=torch.complex64),
        "step": step,
        "random": {0: (1, 2), 1: float("nan")},
    }


def cut(step, placements=None):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state = whole(step)
    for name, (place, _, _) in PLACES.items():
        state["cut"][name] = distribute_tensor(state["cut"][name], mesh, [(placements or {}).get(name, place)])
    columns = state["cut"]["columns"]
    turned = columns.to_local().t().contiguous().t()  # a shard need not lie in one piece
    state["cut"]["columns"] = DTensor.from_local(
        turned, mesh, columns.placements, shape=columns.shape, stride=columns.stride()
    )
    return state


def full(state):
    if isinstance(state, dict):
        return {key: full(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(full, state))
    return state.full_tensor() if hasattr(state, "full_tensor") else state


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.LayerNorm(3), nn.BatchNorm1d(3))


def training():
    model = net()
    fully_shard(model[0])
    fully_shard(model)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def train(model, optimizer, steps):
    for i in steps:
        model(torch.randn(8, 5, generator=torch.Generator().manual_seed(i))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def captured(model, optimizer):
    """As a session does: the streams of all ranks."""
    state = capture(model, optimizer)
    streams = [None] * dist.get_world_size()
    dist.all_gather_object(streams, state["random"])
    return state | {"random": {rank: stream for part in streams for rank, stream in part.items()}}


@case
def save(folder):
    store = ShardedStore(folder / "c")
    info = store.save(1, cut(1), facts={"rank": 0})
    state = cut(2)
    pending = store.save_async(2, state)
    for tensor in state["cut"].values():
        tensor.to_local().zero_()
    state["plain"][0].zero_()
    assert pending.result().step == 2
    assert [i.id for i in store.store.list()] == [info.id, pending.result().id]
    assert info.facts == {"rank": 0}
    for step in range(3, 8):
        pending = store.save_async(step, cut(step))
    assert store.flush()
    assert pending.result().step == 7
    assert same(whole(2), store.store.load(2)[0])
    assert not list((folder / "c" / ".staging").iterdir())


@case
def load(folder):
    """Placements as they were, and others."""
    store = ShardedStore(folder / "c")
    swapped = {"rows": Shard(1), "columns": Replicate(), "copy": Shard(0), "bytes": Replicate()}
    for placements in ({}, swapped):
        like = cut(0, placements)
        state, info = store.load(like=like)
        assert info.step == 7
        assert same(full(state), whole(7))
        for name, tensor in state["cut"].items():
            assert tensor.placements == like["cut"][name].placements
        assert same(full(like), whole(0)), "what is given stays as it is"
    assert same(full(store.load(2, like=cut(0))[0]), whole(2))
    assert same(full(store.load(2, like={})[0]), whole(2)), "whole where nothing says otherwise"
    with pytest.raises(BadInput, match=r"step 99 .*Steps there: 1, 2"):
        store.load(99, like={})


@case
def meshes(folder):
    """Hybrid sharding and two dimensions of shards, on four ranks; read on every other such layout."""
    store = ShardedStore(folder / "m")
    mesh = init_device_mesh("cpu", (2, 2))
    layouts = [(Replicate(), Shard(0)), (Shard(0), Shard(0)), (Shard(1), Shard(0)), (Shard(0), Replicate())]

    def spread(places):
        return {"model": {"weight": distribute_tensor(torch.arange(35.0).reshape(7, 5), mesh, places)}}

    for step, places in enumerate(layouts):
        info = store.save(step, spread(places))
        files = len(list(info.path.glob("shard-*")))
        assert files == (2 if Replicate() in places else 4), "copies are written once"
        assert torch.equal(store.store.load(step)[0]["model"]["weight"], torch.arange(35.0).reshape(7, 5))
        for others in layouts:
            state, _ = store.load(step, like=spread(others))
            assert state["model"]["weight"].placements == others
            assert torch.equal(state["model"]["weight"].full_tensor(), torch.arange(35.0).reshape(7, 5))


@case
def both(folder):
    """FSDP2 over tensor parallelism, which cut the same dimension."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

    def parallel():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        model = fully_shard(parallelize_module(model, mesh["tensor"], plan), mesh=mesh["data"])
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    store = ShardedStore(folder / "b")
    model, optimizer = parallel()
    for _ in range(2):
        model(torch.ones(4, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    store.save(2, captured(model, optimizer))
    saved = full(captured(model, optimizer))
    whole_state = store.store.load()[0]
    other, fresh = parallel()
    state, _ = store.load(like=captured(other, fresh))
    restore(state, other, fresh)
    for part in ("model", "optimizer"):
        assert same(whole_state[part], saved[part]), part
        assert same(full(captured(other, fresh))[part], saved[part]), part


@case
def resume(folder):
    """The training goes on as if nothing had happened: bit for bit on as many ranks, from its state on others."""
    store = ShardedStore(folder / "t")
    model, optimizer = training()
    if not store.store.list():
        dist.barrier()
        train(model, optimizer, range(3))
        store.save(3, captured(model, optimizer))
        plain = CheckpointStore(folder / "truth")
        for step in (3, 6):
            state = full(captured(model, optimizer))
            if dist.get_rank() == 0:
                plain.save(step, state)
            train(model, optimizer, range(3, 6))
        dist.barrier()
        model, optimizer = training()
    truth = CheckpointStore(folder / "truth")
    saved, after = truth.load(3)[0], truth.load(6)[0]
    for source in (store, ShardedStore(folder / "truth")):  # the second one was saved whole, by one process
        model, optimizer = training()
        state, _ = source.load(3, like=captured(model, optimizer))
        level, reasons = restore(state, model, optimizer)
        now = full(captured(model, optimizer))
        for part in ("model", "optimizer"):
            assert same(now[part], saved[part]), part
        moments = optimizer.state[model[0].weight]
        assert type(moments["exp_avg"]).__name__ == "DTensor"
        train(model, optimizer, range(3, 6))
        if dist.get_world_size() == len(saved["random"]):
            assert level == "exact", reasons
            now = full(captured(model, optimizer))
            assert same(now["model"], after["model"])
            assert same(now["optimizer"], after["optimizer"])
        else:
            assert level == "equivalent", (level, reasons)


@case
def errors(folder):
    rank = dist.get_rank()
    store = ShardedStore(folder / "e")
    store.save(1, cut(1))
    sync = os.fsync

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    for attempt in ("sync", "async"):
        for failing in (0, 1):
            os.fsync = full_disk if rank == failing else sync
            with pytest.raises(NotSaved, match=f"step 2 was not saved.*rank {failing}: .*No space left") as error:
                store.save(2, cut(2)) if attempt == "sync" else store.save_async(2, cut(2)).result()
            os.fsync = sync
            assert error.value.errno == 28
            assert [info.step for info in store.store.list()] == [1]
            dist.barrier()
            assert not list((folder / "e" / ".staging").iterdir())
    state = cut(2)  # a collective itself
    with pytest.raises(BadInput, match=r"state\['f'\] is a function" if rank else "Rank 1: "):
        store.save(2, {"f": len} if rank else state)
    with pytest.raises(BadInput, match=r"state\['f'\] is a function" if rank else "Rank 1: "):
        store.save_async(2, {"f": len} if rank else state).result()
    with pytest.raises(BadInput, match="rank 0 saves step 2"):
        store.save(2 + rank, state)
    fewer = {name: tensor for name, tensor in state["cut"].items() if name != "rows" or rank == 0}
    with pytest.raises(BadInput, match=r"1 DTensors are not the same.*'cut/rows'"):
        store.save(2, {**state, "cut": fewer})
    with pytest.raises(BadInput, match="positive number"):
        ShardedStore(folder / "e", timeout=0)
    with pytest.raises(NotApplicable, match="ShardedStore"):
        CheckpointStore(folder / "e").save(2, cut(2))
    state = cut(3)
    others = {"plain": [torch.ones(9)], "step": 0, "more": torch.zeros(1)} if rank else {}
    assert store.save(3, state | others).step == 3, "what is not sharded is the first rank's"
    assert same(full(store.load(like=cut(0))[0]), whole(3))
    store.preflight()
    dist.barrier()
    store.close()
    with pytest.raises(NotSaved, match="store was closed"):
        store.save(4, cut(4))


@case
def fallback(folder):
    """A flipped bit in one rank's file is found by whoever needs it, and all go back together."""
    store = ShardedStore(folder / "f")
    store.save(1, cut(1))
    info = store.save(2, cut(2))
    if dist.get_rank() == 0:
        path = info.path / f"shard-{dist.get_world_size() - 1:05d}.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    dist.barrier()
    with pytest.raises(CorruptData, match="bytes of tensor"):
        store.load(2, like=cut(0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DynaxxWarning)
        state, found = store.load(like=cut(0))
    assert found.passed_over == (info.path.name,)
    assert same(full(state), whole(1))
    assert len([w for w in caught if w.category is DynaxxWarning]) == (dist.get_rank() == 0)
    dist.barrier()
    assert (folder / "f" / "quarantine" / info.path.name).exists()


def lost(folder, lose, seconds, loser=1):
    """Save once; then one rank is lost in the middle of its file, and the others must learn it in time."""
    store = ShardedStore(folder / "k", timeout=seconds)
    state = cut(2)  # a collective itself
    store.save(1, cut(1))
    if dist.get_rank() == loser:
        write = tensorfile_module.write_durably

        def torn(path, parts, meanwhile):
            path.write_bytes(b"".join(bytes(part) for part in parts)[:100])
            lose()
            return write(path.with_name("late"), parts, meanwhile)

        tensorfile_module.write_durably = torn
    began = time.monotonic()
    with pytest.raises(NotSaved, match=f"A rank is gone, or did not answer within {seconds} s"):
        store.save(2, state)
    assert time.monotonic() - began < 3 * seconds
    with pytest.raises(NotSaved, match="restart the training"):
        store.save(3, state)
    assert [info.step for info in store.store.list()] == [1]
    assert same(store.store.load()[0], whole(1))
    os._exit(0)


@case
def killed(folder):
    lost(folder, lambda: os.kill(os.getpid(), signal.SIGKILL), 6)


@case
def first_killed(folder):
    lost(folder, lambda: os.kill(os.getpid(), signal.SIGKILL), 6, loser=0)


@case
def stopped(folder):
    lost(folder, lambda: time.sleep(20), 3)


@case
def absent(folder):
    """A rank that does not call save: the first one can name it."""
    store, state = ShardedStore(folder / "a", timeout=2), cut(1)
    if dist.get_rank() == 1:
        time.sleep(8)
        os._exit(0)
    match = "Ranks 1 failed" if dist.get_rank() == 0 else "did not answer within 2 s"
    with pytest.raises(NotSaved, match=match):
        store.save(1, state)
    assert store.store.list() == ()
    os._exit(0)


@case
def after(folder):
    """What a killed job left does not stand in the way of the next one."""
    store = ShardedStore(folder / "k")
    state, info = store.load(like=cut(0))
    assert same(full(state), whole(1))
    store.continue_from(info)
    assert store.save(2, cut(2)).step == 2
    assert not list((folder / "k" / ".staging").iterdir())


def main(folder, names, rank, world):
    warnings.simplefilter("error", DynaxxWarning)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{folder}/meet.{names}.{world}")
    for name in names.split(","):
        CASES[name](Path(folder))
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
