"""Loops for two gloo ranks: run as a script it is one rank, and leaves what each loop found in a folder."""

import contextlib
import json
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import dynaxx
from dynaxx.errors import DynaxxWarning

WORLD = 2
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def net(dtype=torch.float32):
    """Shards are uneven: 7 and 3 rows do not divide by two, and of one row a rank holds nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.LayerNorm(3), nn.Linear(3, 1)).to(dtype)
    model[2].bias.requires_grad_(False)
    return model


def batches(rank, world=WORLD, n=6, dtype=torch.float32):
    for i in range(n):
        yield torch.randn(8, 5, generator=torch.Generator().manual_seed(i)).to(dtype).chunk(world)[rank]


def full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def weights(model):
    return [full(p.detach()).clone() for p in model.parameters()]


def norms(model):
    """Truth by hand, from whole gradients: all ranks gather."""
    rows = {}
    for name, parameter in model.named_parameters():
        layer = name.removeprefix("module.").rpartition(".")[0]
        square = 0.0 if parameter.grad is None else full(parameter.grad).double().square().sum().item()
        rows[layer] = rows.get(layer, 0.0) + square
    return [square**0.5 for square in rows.values()]


def update_norms(model, before):
    rows = {}
    for (name, _), new, old in zip(model.named_parameters(), weights(model), before, strict=True):
        layer = name.removeprefix("module.").rpartition(".")[0]
        rows[layer] = rows.get(layer, 0.0) + (new.double() - old.double()).square().sum().item()
    return [square**0.5 for square in rows.values()]


def shard(model, **options):
    fully_shard(model[0], **options)
    return fully_shard(model, **options)


def optimizer_of(model, **options):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, **options)


class Silent:
    """In place of the run, for the bare loop."""

    step = 0

    def log(self, **values):
        pass

    def apply(self, *args, **kwargs):
        pass

    def close(self):
        pass


def twice(loop, folder):
    """The loop bare and watched; whether the weights are the same bit for bit, and the watched one's run and truth."""
    bare, _, _ = loop(lambda *a, **k: Silent())
    watched, run, truth = loop(lambda m, o, **k: dynaxx.watch(m, o, folder, quiet=True, **k))
    run.close()
    same = all(map(torch.equal, bare, watched))
    return {"same": same, "steps": run.step, "weights": [w.tolist() for w in watched], **truth}


def accumulate(wrap, held, rank, folder):
    """Two micro-batches a step; the first one's gradients are not reduced."""

    def loop(watch):
        model = wrap(net())
        optimizer = optimizer_of(model)
        run = watch(model, optimizer)
        truth = {"grad_norm": [], "update_norm": [], "loss": []}
        for i, x in enumerate(batches(rank)):
            last = i % 2 == 1
            with held(model, last):
                loss = model(x).square().mean()
                (loss / 2).backward()
            run.log(loss=loss)
            truth["loss"].append(loss.item())
            if last:
                truth["grad_norm"].append(norms(model))
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                before = weights(model)
                optimizer.step()
                truth["update_norm"].append(update_norms(model, before))
                optimizer.zero_grad()
        return weights(model), run, truth

    return twice(loop, folder)


@contextlib.contextmanager
def fsdp_held(model, last):
    model.set_requires_gradient_sync(last)
    yield


@case
def ddp_accumulation(rank, folder):
    return accumulate(
        DistributedDataParallel, lambda m, last: contextlib.nullcontext() if last else m.no_sync(), rank, folder
    )


@case
def fsdp_accumulation(rank, folder):
    return accumulate(shard, fsdp_held, rank, folder)


def plain(wrap, rank, folder, dtype=torch.float32, **options):
    def loop(watch):
        model = wrap(net(dtype))
        optimizer = optimizer_of(model)
        run = watch(model, optimizer, **options)
        truth = {"grad_norm": [], "update_norm": []}
        for x in batches(rank, dtype=dtype):
            model(x).square().mean().backward()
            truth["grad_norm"].append(norms(model))
            before = weights(model)
            optimizer.step()
            truth["update_norm"].append(update_norms(model, before))
            optimizer.zero_grad()
        return weights(model), run, truth

    return twice(loop, folder)


@case
def fsdp_in_double_precision(rank, folder):
    return plain(shard, rank, folder, torch.float64, signals=["default", "exact_trajectory"])


@case
def fsdp_in_mixed_precision(rank, folder):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return plain(lambda m: shard(m, mp_policy=policy), rank, folder)


@case
def hybrid_sharding(rank, folder):
    """Replicated over one dimension of the mesh, sharded over the other, of one rank: each copy counts once."""
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    return plain(lambda m: shard(m, mesh=mesh), rank, folder)


@case
def fsdp_by_parameter(rank, folder):
    """One row per parameter: where a rank holds nothing of a row, its figure is the other's."""
    model = shard(net())
    optimizer = optimizer_of(model)
    run = dynaxx.watch(model, optimizer, folder, layers="parameters", quiet=True)
    truth = []
    for x in batches(rank):
        model(x).square().mean().backward()
        gradients = [0 * full(p.detach()) if p.grad is None else full(p.grad) for p in model.parameters()]
        truth.append([[g.norm().item(), g.abs().max().item(), (g == 0).float().mean().item()] for g in gradients])
        optimizer.step()
        optimizer.zero_grad()
    run.close()
    return {"truth": truth}


@case
def fsdp_with_one_bad_shard(rank, folder):
    """Entries that are not finite in rank 1's shards only, and layers of which a rank knows not even the type."""

    class Mixed(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x).double())

    torch.manual_seed(0)
    model = Mixed(nn.Linear(5, 7), nn.Linear(7, 1).double())
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = dynaxx.watch(model, optimizer, folder, quiet=True)
    run.apply("skip", when="always", steps=1)
    for i, x in enumerate(batches(rank, n=3)):
        model(x).square().mean().backward()
        if i == 1 and rank == 1:
            model[0].weight.grad.to_local()[0, :2] = torch.tensor([torch.nan, torch.inf])
        optimizer.step()
        optimizer.zero_grad()
    run.close()
    return {"steps": run.step}


@case
def ddp_watched_inside(rank, folder):
    """The bare model is watched while the loop calls its wrapper: still one rank writes."""

    def loop(watch):
        model = net()
        wrapper = DistributedDataParallel(model)
        optimizer = optimizer_of(model)
        run = watch(model, optimizer)
        truth = {"grad_norm": []}
        for x in batches(rank):
            wrapper(x).square().mean().backward()
            truth["grad_norm"].append(norms(model))
            optimizer.step()
            optimizer.zero_grad()
        return weights(model), run, truth

    return twice(loop, folder)


@case
def ddp_one_rank_stops_early(rank, folder):
    """Uneven data: rank 1 is through before the calibration, rank 0 goes on past it with `join`."""
    model = DistributedDataParallel(net())
    optimizer = optimizer_of(model)
    run = dynaxx.watch(model, optimizer, folder, quiet=True)
    with model.join():
        for x in batches(rank, n=106 if rank == 0 else 60):
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    run.close()
    return {"steps": run.step, "calibrated": run._instruments.calibrated}


def act(wrap, rank, folder):
    """Every action, with a batch that is not finite on rank 1 only: both ranks must decide alike."""
    model = wrap(net())
    optimizer = optimizer_of(model)
    run = dynaxx.watch(model, optimizer, folder, quiet=True)
    run.apply("learning_rate", factor=0.5)
    run.apply("gradient_scale", factor=2.0, steps=3)
    run.apply("gradient_clip", max_norm=0.1)
    run.apply("skip")
    for i, x in enumerate(batches(rank)):
        if i == 2 and rank == 1:
            x = x * torch.nan
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    run.close()
    return {"steps": run.step, "weights": [w.tolist() for w in weights(model)]}


@case
def ddp_actions(rank, folder):
    return act(DistributedDataParallel, rank, folder)


@case
def fsdp_actions(rank, folder):
    return act(shard, rank, folder)


@case
def ddp_under_a_scaler(rank, folder):
    """The overflow of one rank is in the reduced gradient of all."""

    def loop(watch):
        model = DistributedDataParallel(net())
        optimizer = optimizer_of(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        run = watch(model, optimizer, scaler=scaler)
        truth = {"grad_norm": []}
        for i, x in enumerate(batches(rank)):
            loss = model(x).square().mean()
            scaler.scale(loss * 3e38 if i == 1 and rank == 1 else loss).backward()
            scaler.unscale_(optimizer)
            if i != 1:
                truth["grad_norm"].append(norms(model))
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return weights(model), run, truth

    return twice(loop, folder)


def main(folder, names, rank):
    warnings.simplefilter("error", DynaxxWarning)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, init_method=f"file://{folder}/meet")
    for name in names:
        result = CASES[name](rank, f"{folder}/{name}")
        Path(folder, f"{name}.{rank}.json").write_text(json.dumps(result))
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].split(","), int(sys.argv[3]))
