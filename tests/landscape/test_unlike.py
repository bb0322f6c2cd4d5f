"""Batches that differ: named where the loss fails on them, left alone where it does not."""

import pytest
import torch
from torch import nn

from dynaxx import Task
from dynaxx.errors import BadInput
from dynaxx.landscape._unlike import explained


class Mixed(Task):
    """Every third batch calls its inputs by another name."""

    steps = 10

    def model(self):
        return nn.Linear(2, 1)

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def batches(self, split, seed):
        return [{"x" if i % 3 < 2 else "inputs": torch.ones(4, 2), "y": torch.ones(4)} for i in range(6)]

    def loss(self, model, batch):
        return (model(batch["x"])[:, 0] - batch["y"]).square().mean()


class Alike(Mixed):
    """All batches lack what the loss wants."""

    def batches(self, split, seed):
        return [(torch.ones(4, 2), torch.ones(4))] * 3


def passed(task):
    model = task.model()
    with explained(task):
        for batch in task.batches("train", 0):
            task.loss(model, batch)


def test_the_batch_that_differs_is_named_with_its_keys():
    with pytest.raises(BadInput, match=r"KeyError: 'x'.*first has keys x, y, train batch 2 has keys inputs, y"):
        passed(Mixed())


def test_an_error_of_batches_that_are_alike_is_the_users_own():
    with pytest.raises(TypeError, match="indices"):
        passed(Alike())


def test_what_the_loss_takes_is_not_questioned():
    class Lenient(Mixed):
        def loss(self, model, batch):
            return model(batch.get("x", batch.get("inputs"))).mean()

    passed(Lenient())
