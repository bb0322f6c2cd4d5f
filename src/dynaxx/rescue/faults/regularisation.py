"""Faults of regularisation: too much of it, or none where there are few examples."""

from collections.abc import Sequence
from random import Random
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dynaxx.core.task import Split, Task
from dynaxx.rescue._parts import before_head, groups_of
from dynaxx.rescue.alteration import Fault, log_uniform


class DropoutTooHigh(Fault):
    """Nearly all features before the head are dropped."""

    name = "dropout_too_high"
    codes = ("D27", "D12", "D9", "D10")
    causes = ("regularisation_too_strong", "train_eval_mismatch")

    def __init__(self, random: Random) -> None:
        self.rate = random.uniform(0.85, 0.98)

    def model(self, task: Task, model: nn.Module) -> nn.Module:
        """Insert it."""
        before_head(model, nn.Dropout(self.rate))
        return model


class DecayTooHigh(Fault):
    """The weight decay outweighs the gradient."""

    name = "decay_too_high"
    codes = ("D12", "D10", "D9", "D1", "D28", "D32", "D18", "D37", "D40")
    causes = ("weight_decay_too_high", "weight_decay_coupled", "regularisation_too_strong")

    def __init__(self, random: Random) -> None:
        self.per_step = log_uniform(random, 0.02, 0.2)

    def optimizer(self, task: Task, model: nn.Module, optimizer: Optimizer) -> Optimizer:
        """Set it so that a weight without gradient loses this share in a step."""
        for group in groups_of(optimizer, "weight_decay"):
            group["weight_decay"] = self.per_step / float(str(group["lr"]))
        return optimizer


class Overfitting(Fault):
    """The training set is a handful of examples, and nothing holds the model back."""

    name = "overfitting"
    codes = ("D11", "D30", "D19")
    causes = ("overfitting", "repeated_batch")

    def __init__(self, random: Random) -> None:
        self.share = log_uniform(random, 0.03, 0.1)
        self._kept: list[Any] = []

    def batches(self, task: Task, split: Split, epoch: int, batches: Sequence[Any]) -> Sequence[Any]:
        """The first few batches, in an order that changes."""
        if split == "validation":
            return batches
        few = max(2, round(self.share * min(len(batches), 64)))
        self._kept = self._kept or [batches[i] for i in range(min(few, len(batches)))]
        order = Random(epoch).sample(self._kept, len(self._kept))
        return order * max(1, min(len(batches), 64) // len(order))
