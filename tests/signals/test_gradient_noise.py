"""The live noise scale on problems whose noise is known, from both kinds of data."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

import dynaxx
from dynaxx.core.objective import Objective
from dynaxx.errors import NotApplicable
from dynaxx.numerics.tail_index import judged_pairs
from dynaxx.signals._tails import PAIRS


class Point(nn.Module):
    """L = ½ mean ‖θ − x‖²: the gradient of an example is θ − x, so that Σ is the covariance of the data."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(theta)

    def forward(self, x):
        return (self.theta - x).square().sum(1).mean() / 2


def loss_fn(model, batch):
    return model(batch)


@pytest.fixture
def cloud():
    return torch.randn(64, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def point():
    return Point(torch.full((12,), 0.5, dtype=torch.float64))


def test_the_parts_of_a_probe_batch_give_the_textbook_formulas(bench, cloud, point):
    found = bench(point, torch.optim.SGD(point.parameters(), lr=0.1), "gradient_noise")
    point(cloud).backward()
    values = found.step(objective=Objective(point, loss_fn, [cloud]))
    parts = 0.5 - cloud.view(4, 16, 12).mean(1)
    small, big = float(parts.square().sum(1).mean()), float(parts.mean(0).square().sum())
    trace = (small - big) / (1 / 16 - 1 / 64)
    gradient = (64 * big - 16 * small) / 48
    assert float(values["gradient_noise.trace"]) == pytest.approx(trace, rel=1e-6)
    assert float(values["gradient_noise.gradient"]) == pytest.approx(gradient, rel=1e-5)
    assert float(values["gradient_noise"]) == pytest.approx(trace / gradient, rel=1e-5)
    assert float(values["gradient_noise.diversity"]) == pytest.approx(small / big / 4, rel=1e-6)
    units = parts / parts.norm(dim=1, keepdim=True)
    cosine = ((units @ units.T).sum() - 4) / 12
    assert float(values["gradient_noise.cosine"]) == pytest.approx(float(cosine), rel=1e-5)
    assert math.isnan(float(values["gradient_noise.error"]))
    assert "probe batch" in found.columns["gradient_noise"].about


def test_many_measurements_find_the_true_scale(bench, point):
    """B = d σ² / ‖θ‖² = 12 / 3 = 4."""
    found = bench(point, torch.optim.SGD(point.parameters(), lr=0.0), "gradient_noise")
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        cloud = torch.randn(64, 12, generator=generator, dtype=torch.float64)
        values = found.step(objective=Objective(point, loss_fn, [cloud]))
    error = float(values["gradient_noise.error"])
    assert 0.02 < error < 0.3
    assert float(values["gradient_noise"]) == pytest.approx(4.0, rel=4 * error)


def test_a_batch_that_cannot_be_cut_is_not_applicable(bench, point):
    found = bench(point, torch.optim.SGD(point.parameters(), lr=0.1), "gradient_noise")
    with pytest.raises(NotApplicable, match="fewer than 2 examples"):
        found.step(objective=Objective(point, loss_fn, [torch.zeros(1, 12, dtype=torch.float64)]))


def watched(tmp_path, point, batches, loss=None, accumulate=4, divide=True, monkeypatch=None):
    """Train with accumulation; return the run's view, and the parts of each step's gradient."""
    monkeypatch.setattr("dynaxx.session.instruments.PRICING", 2)
    optimizer = torch.optim.SGD(point.parameters(), lr=0.05)
    names = ["gradient_noise", "grad_norm"]
    truth = []
    with dynaxx.watch(point, optimizer, tmp_path / "run", loss=loss, signals=names, quiet=True) as run:
        for start in range(0, len(batches), accumulate):
            parts = []
            for batch in batches[start : start + accumulate]:
                part = point(batch) / (accumulate if divide else 1)
                parts.append(torch.autograd.grad(part, point.theta, retain_graph=True)[0])
                part.backward()
            truth.append(torch.stack(parts))
            optimizer.step()
            optimizer.zero_grad()
    return run.view(), truth


@pytest.mark.parametrize("divide", [True, False])
def test_accumulation_gives_the_noise_for_nothing(tmp_path, point, monkeypatch, divide):
    batches = list(torch.randn(24, 4, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    view, truth = watched(tmp_path, point, batches, divide=divide, monkeypatch=monkeypatch)
    assert view["gradient_noise"].steps.tolist() == [2, 4, 6]
    traces, gradients = [], []
    for step, trace, gradient in zip(
        [2, 4, 6], view["gradient_noise.trace"].values, view["gradient_noise.gradient"].values, strict=True
    ):
        parts = truth[step - 1] * 4
        small, big = float(parts.square().sum(1).mean()), float(parts.mean(0).square().sum())
        traces.append((small - big) / (1 / 4 - 1 / 16))
        gradients.append((16 * big - 4 * small) / 12)
        assert trace == pytest.approx(traces[-1], rel=1e-5)
        assert gradient == pytest.approx(gradients[-1], rel=1e-4, abs=1e-5)
    # The ratio does not depend on whether the loop divides its loss by the number of microbatches.
    assert view["gradient_noise"].values[-1] == pytest.approx(np.mean(traces) / np.mean(gradients), rel=1e-4)
    assert "accumulated" in view["gradient_noise"].column.about
    assert "gradient_noise.cosine" not in view.columns


def test_unequal_microbatches_are_left_out(tmp_path, point, monkeypatch):
    batches = [torch.ones(n, 12, dtype=torch.float64) for n in (4, 4, 4, 3) * 6]
    view, _ = watched(tmp_path, point, batches, monkeypatch=monkeypatch)
    assert "gradient_noise" not in view.columns


def test_without_accumulation_and_loss_it_is_not_applicable(tmp_path, point, monkeypatch):
    batches = [torch.ones(4, 12, dtype=torch.float64)] * 100
    view, _ = watched(tmp_path, point, batches, accumulate=1, monkeypatch=monkeypatch)
    (report,) = view.events("self_test")
    assert "accumulate" in report["not_applicable"]["gradient_noise"]
    assert "loss=loss_fn" in report["not_applicable"]["gradient_noise"]


def test_successive_gradients_and_cancellation(bench):
    """Two layers, of which one climbs while the other descends."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 40, bias=False), nn.Linear(40, 1, bias=False))
    found = bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "gradient_agreement")
    one, other = ([torch.randn_like(p) for p in model.parameters()] for _ in range(2))

    def step(gradients, update):
        for p, g in zip(model.parameters(), gradients, strict=True):
            p.grad = g.clone()
        view = found.begin()
        view.before = tree_map(torch.clone, update)
        return found.measure(found.signals["gradient_agreement"].at, view)

    first = step(one, [one[0], one[1]])
    assert float(first["gradient_agreement.cancellation"]) == pytest.approx(0.0, abs=1e-6)
    assert "gradient_agreement" not in first
    mixed = [a + 0.5 * b for a, b in zip(one, other, strict=True)]
    second = step(mixed, [mixed[0], -mixed[1]])
    a, b = (float(g.square().sum()) for g in mixed)
    assert float(second["gradient_agreement.cancellation"]) == pytest.approx(1 - (a - b) / (a + b), rel=1e-5)
    flat = [torch.cat([g.flatten() for g in gs]) for gs in (one, mixed)]
    truth = float(torch.nn.functional.cosine_similarity(*flat, dim=0))
    assert float(second["gradient_agreement"]) == pytest.approx(truth, abs=4 * 4096**-0.5)


def test_tails_come_from_pairs_of_unclipped_gradients(bench):
    """Of a net so small that its sketch is exact; one window is clipped at 1, which would cut every tail."""
    model = nn.Linear(30, 20)
    found = bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "gradient_agreement")
    gradients = torch.randn(2 * PAIRS, 620, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 4, 620)
    gradients *= torch.linspace(-5, 5, 2 * PAIRS).exp()[torch.randperm(2 * PAIRS)][:, None]

    def window(clipped):
        for number, row in enumerate(gradients, 1):
            norm = row.norm()
            used = row / (norm + 1e-6) if clipped else row
            model.weight.grad, model.bias.grad = used[:600].view(20, 30).clone(), used[600:].clone()
            seen = found.step(clip=(norm, 1.0) if clipped else None)
            assert ("gradient_agreement.tail_index" in seen) == (number == 2 * PAIRS)
        return [float(seen[f"gradient_agreement.{name}"]) for name in ("tail_index", "tail_null", "tail_p")]

    pairs = gradients[1::2] - gradients[::2]
    truth = [float(value) for value in judged_pairs(pairs @ pairs.T, draws=100)]
    assert window(clipped=False) == pytest.approx(truth, rel=1e-4)
    assert window(clipped=True) == pytest.approx(truth, rel=1e-2)
    assert truth[0] < 1.5
    assert truth[2] < 0.01
    gradients[40, 7] = torch.nan
    assert math.isnan(window(clipped=False)[0])
