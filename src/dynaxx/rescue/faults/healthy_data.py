"""Healthy runs whose data, loss or model looks alarming: dropout, smoothing, grokking, fine-tuning, opponents."""

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dynaxx.core.loop import train_steps
from dynaxx.core.task import Split, Task, derive_seed
from dynaxx.errors import NotApplicable
from dynaxx.rescue._parts import before_head
from dynaxx.rescue.alteration import Healthy
from dynaxx.rescue.altered import Mapped
from dynaxx.rescue.faults.data import ClassImbalance, needs_numbers
from dynaxx.rescue.faults.rates import scale_rates
from dynaxx.rescue.faults.wiring import needs_classes
from dynaxx.rescue.nets import Perceptron


class HeavyDropout(Healthy):
    """Half of the features before the head are dropped."""

    name = "heavy_dropout"

    def __init__(self, random: Random) -> None:
        self.rate = random.uniform(0.3, 0.6)

    def model(self, task: Task, model: nn.Module) -> nn.Module:
        """Insert it."""
        before_head(model, nn.Dropout(self.rate))
        return model


class MildImbalance(ClassImbalance):
    """One class is two to four times as frequent as the others."""

    name = "mild_imbalance"
    kind = "healthy"
    codes = ()
    causes = ()
    low, high = 0.1, 0.3


class FineTuning(Healthy):
    """The weights have been trained before, and go on at a tenth of the rate."""

    name = "fine_tuning"

    def __init__(self, random: Random) -> None:
        self.before, self.factor = random.randint(100, 200), random.uniform(0.05, 0.2)

    def model(self, task: Task, model: nn.Module) -> nn.Module:
        """Train it for a while."""
        batches = task.batches("train", derive_seed("before"))
        optimizer = task.optimizer(model)
        done = 0
        while done < self.before:
            for _ in train_steps(task, model, optimizer, batches):
                done += 1
                if done == self.before:
                    break
        return model

    def optimizer(self, task: Task, model: nn.Module, optimizer: Optimizer) -> Optimizer:
        """A lower rate."""
        return scale_rates(optimizer, self.factor)


class LabelSmoothing(Healthy):
    """The loss has a floor far above zero, since targets are smoothed."""

    name = "label_smoothing"

    def __init__(self, random: Random) -> None:
        self.share = random.uniform(0.1, 0.25)

    def check(self, task: Task) -> None:
        """Classes only."""
        needs_classes(task, self.name)

    def loss(self, task: Task, model: nn.Module, batch: Any) -> torch.Tensor:
        """Cross-entropy with smoothed targets."""
        inputs, targets = batch
        logits = model(inputs)
        return F.cross_entropy(logits.flatten(0, targets.dim() - 1), targets.flatten(), label_smoothing=self.share)


class SparseFeatures(Healthy):
    """All but the largest inputs are zero."""

    name = "sparse_features"

    def __init__(self, random: Random) -> None:
        self.above = random.uniform(0.7, 1.0)

    def check(self, task: Task) -> None:
        """Numbers only."""
        needs_numbers(task, self.name)

    def batches(self, task: Task, split: Split, epoch: int, batches: Sequence[Any]) -> Sequence[Any]:
        """Cut off what is small, in both splits."""
        return Mapped(batches, lambda _, batch: (batch[0] * (batch[0] > self.above), batch[1]))


class Augmentation(Healthy):
    """Training inputs are noisy and validation ones are not: the training loss stays above."""

    name = "augmentation"

    def __init__(self, random: Random) -> None:
        self.noise, self.salt = random.uniform(0.3, 0.8), random.randrange(2**31)

    def check(self, task: Task) -> None:
        """Numbers only."""
        needs_numbers(task, self.name)

    def batches(self, task: Task, split: Split, epoch: int, batches: Sequence[Any]) -> Sequence[Any]:
        """Add noise."""
        if split == "validation":
            return batches

        def change(index: int, batch: Any) -> Any:
            random = torch.Generator().manual_seed(derive_seed(self.salt, epoch, index))
            return batch[0] + self.noise * torch.randn(batch[0].shape, generator=random), batch[1]

        return Mapped(batches, change)


class HardMixture(Healthy):
    """Now and then a batch is much harder than the others; the next one is as before."""

    name = "hard_mixture"

    def __init__(self, random: Random) -> None:
        self.share, self.noise, self.salt = random.uniform(0.01, 0.04), random.uniform(1, 2), random.randrange(2**31)

    def check(self, task: Task) -> None:
        """Numbers only."""
        needs_numbers(task, self.name)

    def batches(self, task: Task, split: Split, epoch: int, batches: Sequence[Any]) -> Sequence[Any]:
        """Noise on a few batches."""
        if split == "validation":
            return batches

        def change(index: int, batch: Any) -> Any:
            random = torch.Generator().manual_seed(derive_seed(self.salt, epoch, index))
            if float(torch.rand((), generator=random)) > self.share:
                return batch
            return batch[0] + self.noise * torch.randn(batch[0].shape, generator=random), batch[1]

        return Mapped(batches, change)


class _Reverse(torch.autograd.Function):
    """The identity, whose gradient is turned round."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return -gradients[0]


class _Opposed(nn.Module):
    def __init__(self, inner: nn.Module, classes: int) -> None:
        super().__init__()
        self.inner = inner
        self.opponent = nn.Sequential(nn.Linear(classes, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.inner(inputs)


class Opponent(Healthy):
    """A second net reads a property of the input off the outputs, and the first one hides it: losses oscillate."""

    name = "opponent"

    def __init__(self, random: Random) -> None:
        self.strength = random.uniform(0.1, 0.3)

    def check(self, task: Task) -> None:
        """Images with a class each."""
        needs_numbers(task, self.name)
        needs_classes(task, self.name)

    def model(self, task: Task, model: nn.Module) -> nn.Module:
        """Both nets."""
        inputs = next(iter(task.batches("train", 0)))[0]
        training, _ = model.training, model.eval()
        with torch.no_grad():
            classes = model(inputs).shape[-1]
        return _Opposed(model.train(training), classes)

    def loss(self, task: Task, model: nn.Module, batch: Any) -> torch.Tensor:
        """The task's loss, and the opponent's with its gradient turned round on the way to the model."""
        assert isinstance(model, _Opposed)
        inputs, _ = batch
        bright = (inputs.flatten(1).mean(1) > 0).float()
        guess = model.opponent(_Reverse.apply(model.inner(inputs)))[:, 0]
        return task.loss(model.inner, batch) + self.strength * F.binary_cross_entropy_with_logits(guess, bright)

    def optimizer(self, task: Task, model: nn.Module, optimizer: Optimizer) -> Optimizer:
        """Both nets' parameters."""
        assert isinstance(model, _Opposed)
        optimizer.add_param_group({"params": list(model.opponent.parameters())})
        return optimizer

    def bare(self, model: nn.Module) -> nn.Module:
        """The first net."""
        return model.inner if isinstance(model, _Opposed) else model


class Grokking(Healthy):
    """Modular addition: the training set is solved at once, the validation may follow thousands of steps later."""

    name = "grokking"
    modulus = 23

    def __init__(self, random: Random) -> None:
        self.salt, self.decay = random.randrange(2**31), random.uniform(0.5, 2)

    def check(self, task: Task) -> None:
        """It brings its own data and model; once is enough."""
        if not isinstance(task, Perceptron):
            raise NotApplicable(f"{self.name}: it stands in for the task 'mlp' alone.")

    def model(self, task: Task, model: nn.Module) -> nn.Module:
        """Embeddings and a perceptron."""
        p = self.modulus
        return nn.Sequential(nn.Embedding(p, 32), nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, p))

    def optimizer(self, task: Task, model: nn.Module, optimizer: Optimizer) -> Optimizer:
        """AdamW with a strong decay."""
        return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=self.decay)

    def scheduler(self, task: Task, optimizer: Optimizer, scheduler: LRScheduler | None) -> LRScheduler | None:
        """None."""
        return None

    def batches(self, task: Task, split: Split, epoch: int, batches: Sequence[Any]) -> Sequence[Any]:
        """Half of all pairs; the rest is for validation."""
        a, b = torch.meshgrid(torch.arange(self.modulus), torch.arange(self.modulus), indexing="ij")
        pairs = torch.stack((a, b), -1).reshape(-1, 2)
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(self.salt))
        rows = order[: len(pairs) // 2] if split == "train" else order[len(pairs) // 2 :]
        shuffled = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(derive_seed(epoch)))]
        size = 64 if split == "train" else len(rows)
        return [(pairs[part], pairs[part].sum(1) % self.modulus) for part in shuffled.split(size)]
