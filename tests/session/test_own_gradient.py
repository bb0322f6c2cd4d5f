"""A rank's own gradient behind the ranks' mean: seen on two gloo ranks, and by itself."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dynaxx
from dynaxx.core.parameters import Layout
from dynaxx.session import instruments
from dynaxx.session.own_gradient import OwnGradient

WORLD, EXAMPLES, DIMENSION, STEPS = 2, 8, 12, 40


class Point(nn.Module):
    """½‖θ − x‖² with θ = 1: the gradient is θ − x̄, tr Σ = d for x ~ N(0, 1), and ‖G‖² = d."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.ones(DIMENSION))

    def forward(self, x):
        return (self.theta - x).square().sum(1).mean() / 2


def batch(step, rank, same):
    seed = 100 * step + (0 if same else rank)
    return torch.randn(EXAMPLES, DIMENSION, generator=torch.Generator().manual_seed(seed))


def train(folder, rank, same):
    model = DistributedDataParallel(Point())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with dynaxx.watch(model, optimizer, folder, signals=["gradient_noise"], quiet=True):
        for step in range(1, STEPS + 1):
            model(batch(step, rank, same)).backward()
            optimizer.step()
            optimizer.zero_grad()


def worker(folder, rank):
    torch.set_num_threads(1)
    instruments.PRICING = 1  # at every step
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, init_method=f"file://{folder}/meet")
    for same in (False, True):
        train(Path(folder) / f"run-{same}", rank, same)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(folder), str(rank)], stderr=subprocess.PIPE, text=True)
        for rank in range(WORLD)
    ]
    try:
        said = [rank.communicate(timeout=200)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * WORLD, "\n".join(said)
    return {same: dynaxx.open_run(folder / f"run-{same}") for same in (False, True)}


@pytest.mark.slow
def test_two_ranks_give_the_noise_without_communicating(views):
    """§7.1.7 from data parallelism: each step's trace is that of the formula, their mean that of the closed form."""
    view = views[False]
    found = view["gradient_noise.trace"]
    assert "mean over the ranks" in found.column.about
    assert found.steps.tolist() == list(range(1, STEPS + 1))
    truth = []
    for step in found.steps.tolist():
        parts = [1 - batch(step, rank, False).double().mean(0) for rank in range(WORLD)]
        own, whole = float(parts[0].square().sum()), float(((parts[0] + parts[1]) / 2).square().sum())
        truth.append((own - whole) / (1 / EXAMPLES - 1 / (WORLD * EXAMPLES)))
    np.testing.assert_allclose(found.values, truth, rtol=1e-4, atol=1e-4)
    error = np.std(truth) / STEPS**0.5
    assert abs(np.mean(truth) - DIMENSION) < 4 * error
    assert abs(view["gradient_noise"].values[-1] - 1) < 4 * view["gradient_noise.error"].values[-1]


@pytest.mark.slow
def test_ranks_with_the_same_data_are_found_out(views):
    view = views[True]
    assert "gradient_noise" not in view.columns
    (report,) = view.events("self_test")
    assert "train on the same data" in report["not_applicable"]["gradient_noise"]


def test_it_is_the_gradient_of_one_backward_and_leaves_nothing_behind():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    free = [p for p in model.parameters() if p.requires_grad]
    own, x = OwnGradient(Layout(model)), torch.randn(5, 3)
    own.begin()
    model(x).square().mean().backward()
    square, seconds = own.finish()
    assert float(square) == pytest.approx(sum(float(p.grad.square().sum()) for p in free))
    assert seconds > 0
    before = [p.grad.clone() for p in free]
    model(x).square().mean().backward()  # no longer seen
    assert own.finish() == (None, 0.0)
    assert all(torch.equal(p.grad, 2 * g) for p, g in zip(free, before, strict=True))
    assert not any(p._backward_hooks for p in free)


def test_several_backwards_are_no_gradient_of_one():
    model = Point()
    own = OwnGradient(Layout(model))
    own.begin()
    for _ in range(2):
        model(torch.ones(2, DIMENSION)).backward()
    assert own.finish()[0] is None


if __name__ == "__main__":
    worker(sys.argv[1], int(sys.argv[2]))
