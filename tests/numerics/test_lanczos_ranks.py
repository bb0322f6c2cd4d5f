"""Eigenpairs and preconditioning of vectors cut over two gloo ranks: as of whole ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from dynaxx.numerics.lanczos import eigenpairs
from dynaxx.numerics.operator import Operator
from dynaxx.numerics.preconditioner import preconditioning
from dynaxx.numerics.space import Space
from dynaxx.numerics.tracker import CurvatureTracker


class Cut(Operator):
    """A matrix that every rank holds whole, on vectors of which it holds a part."""

    def __init__(self, space, matrix):
        super().__init__(space)
        whole = torch.arange(70.0)
        self.where = space.flatten([like(whole[:60].view(10, 6), space.parameters[0]), whole[60:]]).long()
        self.matrix = matrix

    def apply(self, rows):
        basis = torch.eye(70, dtype=torch.float64)[self.where].T.contiguous()  # entries of whole vectors held here
        whole = self.space.gram(basis, rows.to(basis)) if len(rows) else rows  # a copy held twice is counted once
        return (whole.T @ self.matrix)[:, self.where].contiguous()


def like(tensor, parameter):
    if not hasattr(parameter, "device_mesh"):
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)


def measured(p, q):
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(70, 70, generator=generator, dtype=torch.float64))
    values = torch.cat([torch.tensor([9.0, 8.0, 5.0, -12.0]), torch.linspace(-1, 1, 66)]).double()
    operator = Cut(Space([p, q]), (basis * values) @ basis.T)
    pairs = eigenpairs(operator, 2, tolerance=1e-8)
    tracker = CurvatureTracker(operator)
    tracker.measure()
    warm = tracker.measure()
    optimizer = torch.optim.Adam([p, q], lr=0.1, foreach=False)
    gradient = torch.arange(1.0, 71.0).double()
    p.grad, q.grad = like(gradient[:60].view(10, 6), p), like(gradient[60:], q)
    optimizer.step()
    scaled = preconditioning(optimizer, operator.space).operator(operator)
    return [
        *pairs.values.tolist(),
        pairs.products,
        warm.values.item(),
        eigenpairs(scaled, tolerance=1e-8).values.item(),
    ]


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(tmp_path):
    whole = measured(nn.Parameter(torch.ones(10, 6).double()), nn.Parameter(torch.ones(10).double()))
    assert whole[:2] == pytest.approx([9.0, 8.0], rel=1e-8)
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(whole, rel=1e-9)


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    halves = nn.Parameter(distribute_tensor(torch.ones(10, 6).double(), mesh, [Shard(0)]))
    copies = nn.Parameter(distribute_tensor(torch.ones(10).double(), mesh, [Replicate()]))
    (folder / f"{rank}.json").write_text(json.dumps(measured(halves, copies)))
    dist.destroy_process_group()
