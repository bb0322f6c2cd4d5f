"""Two gloo ranks under DDP take the switches of one process on the joint batch, with equal factors."""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from dynaxx.phases import Phase, Phased

STEPS = 40


def train(rank, world):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    model = nn.parallel.DistributedDataParallel(bare) if world > 1 else bare
    kinds = ("adamw:lr=1e-2", "soap:lr=1e-2", "muon:lr=1e-2")
    plan = [Phase(name=kind, until=(i + 1) / 3, optimizer=kind) for i, kind in enumerate(kinds)]
    optimizer = Phased(model, plan, steps=STEPS)
    for n in range(STEPS):
        draw = torch.Generator().manual_seed(n)
        x, y = torch.randn(12, 6, generator=draw).double(), torch.randint(3, (12,), generator=draw)
        F.cross_entropy(model(x.chunk(world)[rank]), y.chunk(world)[rank]).backward()
        optimizer.step()
        optimizer.zero_grad()
    factors = [f for switch in optimizer.switches for f in switch.factors]
    return {"weights": torch.cat([p.detach().flatten() for p in bare.parameters()]), "factors": torch.tensor(factors)}


def worker(folder, rank):
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/meet")
    torch.save(train(rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    for each in ranks:
        message = each.communicate(timeout=120)[1]
        assert each.returncode == 0, message
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    alone = train(0, 1)
    assert len(alone["factors"]) == 4
    torch.testing.assert_close(one, alone, rtol=1e-6, atol=1e-12)


if __name__ == "__main__":
    worker(sys.argv[1], int(sys.argv[2]))
