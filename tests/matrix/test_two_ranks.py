"""Two gloo ranks, data-parallel (DDP) and sharded (FSDP2): figures equal those of one process on the joint batch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from _ranks import WORLD, net
from torch import nn

import dynaxx

# Dimensions of 7, 3 and 1 do not divide by two: shards are uneven, and rank 1 holds none of the last layer.
COLUMNS = {
    "grad_norm": 1e-5,
    "grad_max": 1e-5,
    "grad_zeros": 0.0,
    "update_norm": 1e-5,
    "update_ratio": 1e-5,
    "parameter_norm": 1e-6,
    "trajectory.distance": 1e-5,
    "trajectory.sketch": 1e-5,
    "optimizer_state.momentum_ratio": 1e-5,
    "optimizer_state.epsilon_dominated": 0.0,
    "clip_coefficient": 1e-5,
    "precision.underflow": 0.0,
    "effective_batch": 0.0,
}


def loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, world: int, run: dynaxx.Run, steps: int
) -> None:
    for i in range(steps):
        batch = torch.randn(8, 5, generator=torch.Generator().manual_seed(i)).chunk(world)[rank]
        loss = model(batch).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        run.log(loss=loss)


def worker(kind: str, folder: str, steps: int, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, init_method=f"file://{folder}/meet")
    model = net()
    if kind == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        fully_shard(model[0])
        fully_shard(model)
    else:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    run = dynaxx.watch(model, optimizer, f"{folder}/run", quiet=True)
    loop(model, optimizer, rank, WORLD, run, steps)
    cadences = {i.name: i.cadence for i in run._instruments.instruments}
    torch.save(cadences, f"{folder}/cadences{rank}")
    run.close()
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_figures_are_those_of_one_process(kind: str, tmp_path: Path) -> None:
    steps = 104  # past the calibration, which all ranks must agree on
    torch.set_num_threads(1)
    model = net()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with dynaxx.watch(model, optimizer, tmp_path / "one", quiet=True) as run:
        loop(model, optimizer, 0, 1, run, steps)
    command = [sys.executable, __file__, kind, str(tmp_path), str(steps)]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(WORLD)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0] * WORLD
    one, two = dynaxx.open_run(tmp_path / "one"), dynaxx.open_run(tmp_path / "run")
    assert two.attempts[-1].n == 1, "one rank writes"
    assert not two.problems
    assert two["grad_norm"].labels == one["grad_norm"].labels == ("0", "2", "3", "4")
    for name, tolerance in COLUMNS.items():
        a, b = np.asarray(one[name])[:100], np.asarray(two[name])[:100]
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance * float(np.nanmax(np.abs(a))), err_msg=name)
    if kind == "fsdp2":
        cadences = [torch.load(tmp_path / f"cadences{rank}") for rank in range(WORLD)]
        assert all(cadences[0][name] == cadence for name, cadence in cadences[1].items())
        assert {"grad_norm", "update_ratio", "trajectory"} <= cadences[1].keys()


if __name__ == "__main__":
    worker(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
