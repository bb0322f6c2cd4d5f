"""Tasks that the tests of the survey train: a user's file, with answers in closed form."""

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn

from dynaxx import Task


class Bowl(Task):
    """½ Σ hᵢ θᵢ² from θ = 1 with h = (1, 2, 4): gradient descent at η gives θᵢ = (1 − η hᵢ)ⁿ."""

    steps, batch_size, threads = 20, 4, 1

    def model(self):
        model = nn.Linear(3, 1, bias=False)
        nn.init.constant_(model.weight, 1.0)
        return model

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def batches(self, split, seed):
        return [torch.ones(4, 3)] * 10

    def loss(self, model, batch):
        return 0.5 * (torch.tensor([1.0, 2.0, 4.0]) * model.weight[0] ** 2).sum() * batch.mean()


class Noisy(Task):
    """Linear regression with noise, a schedule, and an order of the data that matters."""

    steps, batch_size, threads = 30, 8, 1

    def model(self):
        return nn.Linear(4, 1)

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def scheduler(self, optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=self.steps)

    def batches(self, split, seed):
        draw = torch.Generator().manual_seed(0 if split == "train" else 1)
        x = torch.randn(64, 4, generator=draw)
        y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 0.1 * torch.randn(64, generator=draw)
        order = torch.randperm(64, generator=torch.Generator().manual_seed(seed % 2**31))
        return [(x[rows], y[rows]) for rows in order.split(self.batch_size)]

    def loss(self, model, batch):
        return nn.functional.mse_loss(model(batch[0]).squeeze(1), batch[1])


class Slow(Bowl):
    """A bowl whose steps take 20 ms, so that a process can be killed half way."""

    def loss(self, model, batch):
        time.sleep(0.02)
        return super().loss(model, batch)


class Dies(Bowl):
    """Its process is killed in the first training forward: once where there is a mark to leave, else always."""

    def loss(self, model, batch):
        mark = Path(os.environ["DYNAXX_TEST_MARK"])
        if model.training and not mark.exists():
            if mark.parent.exists():
                mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(model, batch)


class Raises(Bowl):
    """An error of the user's."""

    def loss(self, model, batch):
        raise RuntimeError("the user's own error")


class Constant(Bowl):
    """A loss that does not depend on the parameters."""

    def loss(self, model, batch):
        return 0.0 * model.weight.sum() + 1.0


class Explodes(Bowl):
    """Diverges at every rate of any sensible grid."""

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=1e6)


class Wide(Task):
    """A perceptron that declares its width, in standard parametrisation, under Adam."""

    steps, batch_size, threads = 20, 16, 1
    width = 64

    def scaled(self, width):
        other = type(self)()
        other.width = width
        return other

    def model(self):
        width = self.width
        return nn.Sequential(
            nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1), nn.Flatten(0)
        )

    def optimizer(self, model):
        return torch.optim.Adam(model.parameters(), lr=1e-2)

    def batches(self, split, seed):
        draw = torch.Generator().manual_seed(seed % 2**31 if split == "train" else 7)
        x = torch.randn(128, 4, generator=draw)
        return [(part, part.sin().sum(dim=1)) for part in x.split(self.batch_size)]

    def loss(self, model, batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1])


class WideByItself(Wide):
    """The same, whose own optimizer already follows 1/width."""

    def optimizer(self, model):
        return torch.optim.Adam(model.parameters(), lr=1e-2 * 64 / self.width)


class Mixed(Noisy):
    """Every second batch calls its inputs by another name, which the loss does not know."""

    def batches(self, split, seed):
        pairs = super().batches(split, seed)
        return [{"inputs" if i % 2 else "x": x, "y": y} for i, (x, y) in enumerate(pairs)]

    def loss(self, model, batch):
        return super().loss(model, (batch["x"], batch["y"]))
