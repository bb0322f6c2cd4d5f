"""The curriculum: pacing by its formulas, batches from the easiest share, any position again, in loader and task."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dynaxx
from dynaxx.core.curriculum import Curriculum, Pacing, reference_losses
from dynaxx.errors import BadInput


def test_pacing_by_its_formulas():
    shares = {
        shape: [Pacing(shape=shape, start=0.1, until=0.8).share(x) for x in (0, 0.2, 0.4, 0.8, 1)]
        for shape in ("linear", "root", "step")
    }
    assert shares["linear"] == pytest.approx([0.1, 0.325, 0.55, 1, 1])
    assert shares["root"] == pytest.approx([0.1, math.sqrt(0.01 + 0.99 / 4), math.sqrt(0.01 + 0.99 / 2), 1, 1])
    assert shares["step"] == pytest.approx([0.1, 0.325, 0.55, 1, 1])
    assert Pacing(shape="step", start=0.2, until=1.0, stages=2).share(0.49) == pytest.approx(0.2)
    assert Pacing(shape="step", start=0.2, until=1.0, stages=2).share(0.5) == pytest.approx(0.6)


@pytest.mark.parametrize("shape", ["linear", "root", "step"])
def test_batches_come_from_the_easiest_share(shape):
    difficulty = torch.rand(500, generator=torch.Generator().manual_seed(0))
    rank = torch.argsort(torch.argsort(difficulty))
    pacing = Pacing(shape=shape, start=0.05, until=0.6)
    curriculum = Curriculum(difficulty, steps=200, batch_size=16, pacing=pacing)
    for t, batch in enumerate(curriculum):
        assert len(set(batch)) == 16
        limit = max(16, math.ceil(pacing.share(t / 200) * 500))
        assert int(rank[batch].max()) < limit
    assert curriculum.in_use(0) == 25
    assert curriculum.in_use(120) == 500


def test_draws_are_uniform_over_what_is_in_use():
    curriculum = Curriculum(np.arange(40), steps=4000, batch_size=4, pacing=Pacing(start=0.5, until=1.0, shape="step"))
    first = Counter(i for batch in curriculum[:900] for i in batch)
    assert set(first) == set(range(20))
    expected = 900 * 4 / 20
    assert sum((n - expected) ** 2 / expected for n in first.values()) < 43.8  # χ² with 19 degrees: p = 0.001


def test_any_position_again_and_seeds_differ():
    make = lambda seed: Curriculum([0.1] * 30, steps=50, batch_size=5, seed=seed)  # noqa: E731
    whole = list(make(3))
    assert [make(3)[i] for i in (49, 0, 17)] == [whole[49], whole[0], whole[17]]
    assert make(3)[-1] == whole[-1]
    assert make(3)[10:12] == whole[10:12]
    assert list(make(4)) != whole
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(make(5))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    with pytest.raises(IndexError):
        make(3)[50]


def test_in_a_loader_with_workers_and_from_a_checkpoint(tmp_path):
    x = torch.arange(60.0).reshape(60, 1)
    data = TensorDataset(x)

    def train(until, resume=False, save_at=0):
        torch.manual_seed(0)
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)
        loader = DataLoader(data, batch_sampler=Curriculum(x[:, 0], steps=30, batch_size=4, seed=1))
        assert len(loader) == 30
        seen = []
        run = dynaxx.watch(model, optimizer, tmp_path / str(until), steps=30, resume=resume, quiet=True)
        for (batch,) in run.batches(loader):
            seen.append(batch[:, 0].tolist())
            model(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if run.step == save_at:
                run.save()
            if save_at and run.step == until:
                break
        run.close()
        return seen, model.weight.item()

    whole, weight = train(0)
    train(12, save_at=11)
    rest, again = train(12, resume=True)
    assert rest == whole[11:]
    assert again == weight


def test_batches_for_a_task():
    x, y = torch.arange(20.0), torch.arange(20.0) * 2
    batches = Curriculum(x, steps=10, batch_size=3).batches(lambda rows: (x[rows], y[rows]))
    assert len(batches) == 10
    a, b = batches[0]
    assert torch.equal(2 * a, b)
    assert a.max() < 3
    assert len(batches[:4]) == 4
    assert len(list(batches)) == 10


def test_reference_losses_are_those_of_each_example():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.5))
    x, y = torch.randn(7, 2), torch.randn(7, 1)

    def loss(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    found = reference_losses(model, loss, ((x[i : i + 1], y[i : i + 1]) for i in range(7)))
    truth = (x @ model[0].weight.T + model[0].bias - y).square().ravel().double()
    torch.testing.assert_close(found, truth.detach(), rtol=1e-6, atol=1e-9)
    assert model.training
    assert len(Curriculum(found, steps=2, batch_size=2)) == 2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Pacing(shape="cubic"), "Pacing\\(shape=...\\) must be 'root', 'linear' or 'step'. Got 'cubic'"),
        (lambda: Pacing(start=0.0), "start=...\\) must be a share in \\(0, 1\\]. Got 0.0"),
        (lambda: Pacing(until=1.5), "until=...\\) must be a share of the training"),
        (lambda: Pacing(power=-1.0), "power=...\\) must be positive"),
        (lambda: Pacing(stages=0), "stages=...\\) must be an integer"),
        (lambda: Curriculum([1.0, math.nan], steps=1, batch_size=1), "one finite number per example. Got shape .* 1"),
        (lambda: Curriculum([[1.0]], steps=1, batch_size=1), "Got shape \\(1, 1\\)"),
        (lambda: Curriculum([1.0], steps=0, batch_size=1), "at least 1 each. Got 0 and 1"),
        (lambda: Curriculum([1.0], steps=1, batch_size=2), "at most the number of examples, 1. Got 2"),
        (lambda: reference_losses(nn.Linear(1, 1), lambda m, b: m(b), []), "at least one example"),
    ],
)
def test_bad_input(make, said):
    with pytest.raises(BadInput, match=said):
        make()
