"""What a task's samples say of convergence: closed forms, a live training, its resumption."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from dynaxx import Task, catalog, open_run
from dynaxx.errors import BadInput
from dynaxx.session.samples import Samples, agreement, repetition
from dynaxx.session.train import train


def test_agreement_of_texts_and_labels_is_the_equal_share():
    assert agreement(["a", "b", "c"], ["a", "c", "c"]) == pytest.approx(2 / 3)
    assert agreement(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 0])) == 0.5
    assert agreement(torch.tensor([[True, False]]), torch.tensor([[True, True]])) == 0.5
    assert math.isnan(agreement([], []))


def test_agreement_of_outputs_is_the_mean_cosine():
    angles = torch.tensor([0.3, 1.1, 2.5], dtype=torch.float64)
    turned = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[2.0], [0.1], [7.0]])
    flat = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    assert agreement(flat, turned) == pytest.approx(float(angles.cos().mean()), rel=1e-12)
    assert agreement(flat[0], turned[0]) == pytest.approx(math.cos(0.3), rel=1e-6), "one vector in all"
    assert agreement(torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [1.0, 0.0]])) == 0.5
    assert math.isnan(agreement(flat, flat * math.nan))
    image = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert agreement(image, 5 * image) == pytest.approx(1.0)


def test_repetition_by_hand():
    assert repetition(["a b c d a b c d"]) == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert repetition(["one two three four"]) == 0.0
    assert repetition(["x " * 100]) == pytest.approx(96 / 97)
    assert repetition(["a b c", ""]) is None
    assert repetition(["too short", "a\nb  c d"]) == 0.0


class Sampled(Task):
    """y = x, whose answers are the rows of the weight, turned."""

    steps, batch_size, threads = 20, 4, 1

    def __init__(self):
        super().__init__()
        self.answers = []

    def model(self):
        return nn.Sequential(nn.Linear(2, 2, bias=False), nn.Dropout(0.5))

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.05)

    def batches(self, split, seed):
        x = torch.randn(32, 2, generator=torch.Generator().manual_seed(seed))
        return list(x.split(self.batch_size))

    def loss(self, model, batch):
        return nn.functional.mse_loss(model(batch), batch)

    def samples(self, model):
        torch.randn(3)  # what it draws does not reach the training
        assert not model.training
        assert not torch.is_grad_enabled()
        self.answers.append(model(torch.eye(2)))
        return self.answers[-1]


class Plain(Sampled):
    """The same without answers."""

    def samples(self, model):
        return None


class Talker(Plain):
    """Says more of the same each time."""

    said = 0

    def samples(self, model):
        self.said += 1
        return ["a b c d " * self.said, "e f g h"]


def columns(folder):
    view = open_run(folder)
    return {name: view[name] for name in view.columns if name.startswith("samples.")}


def test_a_training_logs_them_and_stays_as_it_is(tmp_path):
    options = {"name": "t", "quiet": True, "signals": ["lr"], "evaluations": 5}
    task = Sampled()
    with_, without = train(task, tmp_path / "a", **options), train(Plain(), tmp_path / "b", **options)
    assert with_.loss == without.loss
    assert with_.validation.keys() == {"val_loss"}
    found = columns(tmp_path / "a")
    assert found.keys() == {"samples.agreement"}
    column = found["samples.agreement"]
    assert list(column.steps) == [8, 12, 16, 20], "from the second evaluation on"
    cosines = [float(torch.cosine_similarity(a, b).mean()) for a, b in pairwise(task.answers)]
    np.testing.assert_allclose(np.asarray(column), cosines, rtol=1e-6)
    assert columns(tmp_path / "b") == {}


def test_texts(tmp_path):
    train(Talker(), tmp_path / "a", name="t", quiet=True, signals=["lr"], evaluations=4)
    found = columns(tmp_path / "a")
    np.testing.assert_array_equal(np.asarray(found["samples.agreement"]), [0.5, 0.5, 0.5])
    pieces = 4 * np.array([1, 2, 3, 4]) - 3
    expected = (1 - np.minimum(pieces, 4) / pieces) / 2
    np.testing.assert_allclose(np.asarray(found["samples.repetition"]), expected, rtol=1e-12)


def test_resumed_they_are_compared_with_those_before(tmp_path):
    class Cut(Exception):
        pass

    def cut(at):
        if at.step == 11:
            raise Cut

    options = {"name": "t", "quiet": True, "signals": ["lr"], "evaluations": 5, "checkpoints": 5}
    train(Sampled(), tmp_path / "whole", **options)
    with pytest.raises(Cut):
        train(Sampled(), tmp_path / "cut", progress=cut, **options)
    train(Sampled(), tmp_path / "cut", resume=True, **options)
    whole, again = (columns(tmp_path / name)["samples.agreement"] for name in ("whole", "cut"))
    np.testing.assert_array_equal(whole.steps, again.steps)
    np.testing.assert_array_equal(np.asarray(whole), np.asarray(again))


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (["a text"], "a list of texts, a list of labels.*Got str"),
        ([[0.5]], "Got list"),
        ([["a"], ["a", "b"]], r"Got shape \(2,\) after \(1,\)"),
        ([[1, 2], ["a", "b"]], "the same inputs at every call"),
        ([torch.ones(2, 3), torch.ones(3, 2)], r"Got shape \(3, 2\) after \(2, 3\)"),
    ],
)
def test_answers_that_cannot_be_compared(answers, said):
    task = Plain()
    samples = Samples(task)
    task.samples = lambda model: answers.pop(0)
    model = nn.Linear(1, 1)
    while len(answers) > 1:
        samples.take(model)
    with pytest.raises(BadInput, match=said):
        samples.take(model)


def test_kinds_of_labels_are_one():
    task = Plain()
    samples = Samples(task)
    answers = [[1, 2], np.array([1, 3]), torch.tensor([1, 3], dtype=torch.int32), np.array([1, 3], dtype=np.uint8)]
    task.samples = lambda model: answers.pop(0)
    found = [samples.take(nn.Linear(1, 1)).get("samples.agreement") for _ in range(4)]
    assert found == [None, 0.5, 1.0, 1.0]


def test_digits_answers_with_labels():
    task = catalog.task("digits", "tiny")
    torch.manual_seed(0)
    model = task.model().eval()
    batch = next(iter(task.batches("validation", 3)))
    assert torch.equal(task.samples(model), model(batch[0]).argmax(dim=1)[:64])
    assert task.samples(model).shape == (64,)
