"""Every optimizer on two gloo ranks under data parallelism takes the steps of one process on the joint batch.

Layers are square and examples more than features, so that no Gram matrix has a null space: there the basis is what
rounding makes it, equal on all ranks, whose gradients are, but not for another order of summation.
"""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from dynaxx.catalog import choice, names
from dynaxx.errors import BadInput

KINDS = [name for name in names("optim") if name != "kfac"]
WORDS = {"muon": "muon:lr=1e-2,stacked={'0':2}"}
STEPS = 12


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def train(kind, rank, world):
    torch.set_num_threads(1)
    bare = net()
    model = nn.parallel.DistributedDataParallel(bare) if world > 1 else bare
    optimizer = choice("optim", WORDS.get(kind, f"{kind}:lr=1e-2")).build(bare)
    for n in range(STEPS):
        draw = torch.Generator().manual_seed(n)
        x, y = torch.randn(2, 24, 6, generator=draw).double()
        F.mse_loss(model(x.chunk(world)[rank]), y.chunk(world)[rank]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights(bare)


def worker(folder, rank):
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/meet")
    found = {kind: train(kind, rank, 2) for kind in KINDS}
    try:
        train("kfac", rank, 2)
    except BadInput as error:
        found["kfac"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, __file__, str(folder)]
    both = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    for each in both:
        message = each.communicate(timeout=120)[1]
        assert each.returncode == 0, message
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_equal_one(ranks, kind):
    one, two = (rank[kind] for rank in ranks)
    assert torch.equal(one, two)
    alone = train(kind, 0, 1)
    assert not torch.allclose(alone, weights(net()), atol=1e-3)
    torch.testing.assert_close(one, alone, rtol=1e-6, atol=1e-9)


def test_kfac_says_that_it_takes_one_rank(ranks):
    for rank in ranks:
        assert "KFAC" in rank["kfac"]
        assert "rank" in rank["kfac"]


if __name__ == "__main__":
    worker(sys.argv[1], int(sys.argv[2]))
