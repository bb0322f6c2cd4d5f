"""Rates by layer, meso and adaptive clipping on two gloo ranks, replicated and sharded: as in one process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import dynaxx
from dynaxx.schedules import Meso, Micro, Rates

STEPS = 24
WORLD = 2


def net():
    """Shards are uneven, and rank 1 holds none of the last layer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.LayerNorm(3), nn.Linear(3, 1)).double()


def train(model, folder, rank, world):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    rates = Rates(micro=Micro(period=5), meso=Meso(every=3, memory=6, strength=1.0))
    run = dynaxx.watch(model, optimizer, folder, quiet=True, rates=rates)
    run.apply("layer_rates", factors={"2": 0.5})
    run.apply("adaptive_clip", by="quantile", quantile=0.3, window=8, warmup=4)
    for i in range(STEPS):
        batch = torch.randn(8, 5, generator=torch.Generator().manual_seed(i)).double().chunk(world)[rank]
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    run.close()
    return [p.full_tensor() if hasattr(p, "full_tensor") else p.detach().clone() for p in model.parameters()]


def worker(kind, folder, rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, init_method=f"file://{folder}/meet")
    model = net()
    if kind == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        fully_shard(model[0])
        fully_shard(model)
    else:
        model = nn.parallel.DistributedDataParallel(model)
    torch.save([p.detach() for p in train(model, f"{folder}/run", rank, WORLD)], f"{folder}/weights{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_as_in_one_process(kind, tmp_path: Path):
    torch.set_num_threads(1)
    truth = train(net(), tmp_path / "one", 0, 1)
    processes = [
        subprocess.Popen([sys.executable, __file__, kind, str(tmp_path), str(rank)], stderr=subprocess.PIPE)
        for rank in range(WORLD)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()
    weights = [torch.load(tmp_path / f"weights{rank}", weights_only=True) for rank in range(WORLD)]
    for a, b, expected in zip(*weights, truth, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, expected.detach(), rtol=1e-7, atol=1e-9)
    coefficients = dynaxx.open_run(tmp_path / "run")["clip_coefficient"].values
    assert (coefficients < 1).any()
    assert (dynaxx.open_run(tmp_path / "run")["lr.meso"].values != 1).any()


if __name__ == "__main__":
    worker(sys.argv[1], sys.argv[2], int(sys.argv[3]))
