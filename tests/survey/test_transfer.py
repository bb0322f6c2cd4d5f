"""Carrying a rate by width: the rule for Adam, what the task does itself, and what is not established."""

import pytest
import torch
from torch import nn

from dynaxx import Task, catalog
from dynaxx.errors import BadInput
from dynaxx.survey.transfer import transfer


class Net(Task):
    width = 64
    kind: type[torch.optim.Optimizer] = torch.optim.Adam

    def scaled(self, width):
        other = type(self)()
        other.width = width
        return other

    def model(self):
        return nn.ModuleDict({
            "embedding": nn.Embedding(10, self.width),
            "hidden": nn.Linear(self.width, self.width),
            "norm": nn.LayerNorm(self.width),
            "out": nn.Linear(self.width, 3),
        })  # fmt: skip

    def optimizer(self, model):
        return self.kind(model.parameters(), lr=1e-2)

    def batches(self, split, seed):
        return []

    def loss(self, model, batch):
        return torch.zeros(())


class Sgd(Net):
    kind = torch.optim.SGD


class Follows(Net):
    """Its own optimizer gives matrices a rate of 1 / width already."""

    def optimizer(self, model):
        matrices = [model["hidden"].weight, model["out"].weight]
        held = {id(p) for p in matrices}
        rest = [p for p in model.parameters() if id(p) not in held]
        return torch.optim.Adam([{"params": matrices, "lr": 0.64 / self.width}, {"params": rest, "lr": 1e-2}])


class Half(Follows):
    """It follows 1 / √width: half of the rule, in decades."""

    def optimizer(self, model):
        return torch.optim.Adam(model.parameters(), lr=0.08 / self.width**0.5)


@pytest.mark.parametrize(
    ("task", "rate", "matrices", "own"),
    [(Net, 1 / 4, 1 / 4, 1.0), (Follows, 1.0, 1 / 4, 1 / 4), (Half, 1 / 2, 1 / 4, 1 / 2), (Sgd, 1.0, 1.0, 1.0)],
)
def test_the_rule(task, rate, matrices, own):
    found = transfer(task().scaled(16), task())
    assert (found.rate, found.matrices, found.own) == (pytest.approx(rate), pytest.approx(matrices), pytest.approx(own))
    assert found.vectors == 1.0
    # Hidden 64² and output 3·64 of them and 64 + 2·64 + 3 + 10·64 others; an embedding is an input layer.
    assert found.weight == pytest.approx((64**2 + 3 * 64) / (64**2 + 3 * 64 + 64 + 128 + 3 + 640))


def test_another_optimizer_has_its_own_rule():
    assert transfer(Net().scaled(16), Net(), "sgd:lr=0.1").rate == 1.0
    assert "SGD" in transfer(Net().scaled(16), Net(), "sgd:lr=0.1").about
    assert transfer(Sgd().scaled(16), Sgd(), "adamw").rate == pytest.approx(1 / 4)


def test_the_random_streams_stay():
    before = torch.get_rng_state()
    transfer(Net().scaled(16), Net())
    assert torch.equal(torch.get_rng_state(), before)


def test_other_names_are_refused():
    class Grows(Net):
        def model(self):
            return nn.Sequential(*(nn.Linear(4, 4) for _ in range(self.width // 16)))

    with pytest.raises(BadInput, match="same names"):
        transfer(Grows().scaled(16), Grows())


def test_a_task_without_a_width_says_so():
    task = catalog.task("diabetes")
    if task.width is None:
        with pytest.raises(BadInput, match="one width"):
            task.scaled(8)
