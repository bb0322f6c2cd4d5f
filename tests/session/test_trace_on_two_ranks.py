"""One rank's batch is bad: both leave the same update out, and go on as if neither had had its batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import dynaxx

BAD = {12: lambda x: 100 * x, 20: lambda x: torch.where(x > 1, torch.nan, x)}
"""Batch → what becomes of it on the second rank."""


def train(folder, clean):
    """Parameters and buffers of this rank at the end, and the steps at which updates were left out."""
    rank = dist.get_rank()
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    # A batch normalisation hides the scale of its inputs from the gradient, and each rank has statistics of its own.
    model = nn.parallel.DistributedDataParallel(net, broadcast_buffers=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    run = dynaxx.watch(model, optimizer, folder, quiet=True, signals=["lr"])
    run.apply("skip", when="gross")
    draw = torch.Generator().manual_seed(1 + rank)
    for i in range(30):
        x = torch.randn(16, 4, generator=draw)
        if i in BAD:
            if clean:
                continue
            x = BAD[i](x) if rank == 1 else x
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    run.close()
    assert run.step == 30 - len(BAD), "both ranks left two updates out"
    return net.state_dict()


def worker(folder, rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/meet")
    clean, spoilt = train(f"{folder}/clean", True), train(f"{folder}/spoilt", False)
    assert all(torch.equal(spoilt[name], value) for name, value in clean.items())
    torch.save(dict(spoilt), f"{folder}/state{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_both_ranks_skip_the_step_in_which_one_has_a_bad_batch(tmp_path: Path) -> None:
    code = f"import runpy; runpy.run_path({__file__!r})['worker']({str(tmp_path)!r}, %d)"
    processes = [subprocess.Popen([sys.executable, "-c", code % rank]) for rank in range(2)]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    one, other = (torch.load(tmp_path / f"state{rank}") for rank in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one if "running" not in name)
    assert not torch.equal(one["0.running_mean"], other["0.running_mean"]), "each has seen its own batches"
    left_out = dynaxx.open_run(tmp_path / "spoilt").events("update_left_out")
    assert [event["step"] for event in left_out] == [12, 19]
