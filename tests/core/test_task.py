import pytest
import torch
from torch import nn

from dynaxx.core.task import Task, derive_seed, first_tensor, leading
from dynaxx.errors import BadInput


class Plain(Task):
    def model(self):
        return nn.Linear(1, 1)

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def batches(self, split, seed):
        return []

    def loss(self, model, batch):
        return model(batch).mean()


class Sized(Plain):
    sizes = ("tiny", "large")


def test_the_size_is_one_of_those_declared():
    assert (Plain().size, Sized().size, Sized("large").size, Sized(size="large").size) == (
        None,
        "tiny",
        "large",
        "large",
    )
    with pytest.raises(BadInput, match=r"Plain has one size only: leave out --size tiny"):
        Plain("tiny")
    with pytest.raises(BadInput, match=r"Sized\(size=\.\.\.\) must be one of tiny, large\. Got 'huge'"):
        Sized("huge")


def test_a_task_without_its_methods_cannot_be_made():
    with pytest.raises(TypeError, match="abstract method"):
        type("Empty", (Task,), {})()


def test_what_may_be_left_out():
    task = Plain()
    assert task.scheduler(task.optimizer(task.model())) is None
    assert (dict(task.metrics(task.model(), None)), dict(task.facts())) == ({}, {})


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        (torch.zeros(7, 2), 7),
        ((torch.zeros(3), torch.zeros(5)), 3),
        ({"text": "abc", "ids": torch.zeros(4, 9)}, 4),
        (["name", [{"x": torch.zeros(6)}]], 6),
        (torch.tensor(1.0), None),
        (["name", 3], None),
        (None, None),
    ],
)
def test_the_weight_is_the_leading_dimension_of_the_first_tensor(batch, rows):
    assert leading(batch) == rows
    assert (first_tensor(batch) is None) == (batch is None or batch == ["name", 3])
    if rows is None:
        with pytest.raises(BadInput, match=r"Plain\.weight\(batch\): no tensor in a .* batch\. Override weight"):
            Plain().weight(batch)
    else:
        assert Plain().weight(batch) == rows


def test_seeds_depend_on_every_part_and_its_place():
    parts = [(0, "train", 1), (0, "train", 2), (1, "train", 0), (0, "validation", 1), (0, "train", 1, 0), (0, "train1")]
    parts += [("12", "3"), ("1", "23"), (123,)]
    seeds = [derive_seed(*each) for each in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))
