"""What is planted in a training: the contract of faults, incidents and healthy oddities, and what a judge expects."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from random import Random
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dynaxx.core.task import Split, Task
from dynaxx.errors import NotApplicable

Kind = Literal["fault", "incident", "healthy"]


class Alteration(ABC):
    """A change of a training, drawn from a distribution: its public attributes are what was drawn.

    Every method is given what the task made and returns what the run shall use. The defaults change nothing.

    Args:
        random: Draws severity, place and time.
    """

    name: ClassVar[str]
    """What it is called in tables and folders."""
    kind: ClassVar[Kind]
    """A fault lasts, an incident passes, a healthy oddity is to be left alone."""
    codes: ClassVar[tuple[str, ...]] = ()
    """Codes of the detectors that may rightly speak of it."""
    causes: ClassVar[tuple[str, ...]] = ()
    """Causes that are right as the first; empty for what is healthy."""
    undone_by: ClassVar[tuple[str, ...]] = ()
    """Actions of the run, or a rollback, that set what was planted right, known before any run: only such faults count
    as repairable. Empty where it takes another model, other data or other code, which no controller can write."""

    @abstractmethod
    def __init__(self, random: Random) -> None: ...

    def check(self, task: Task) -> None:
        """Refuse a task that has no place for it.

        Args:
            task: The untouched task.

        Raises:
            NotApplicable: With the reason.
        """
        del task

    def settings(self, task: Task) -> None:
        """Change `steps` or `batch_size`.

        Args:
            task: The task, to write.
        """
        del task

    def model(self, task: Task, model: nn.Module) -> nn.Module:
        """The model to train.

        Args:
            task: The task.
            model: What it made.

        Returns:
            The model. Raises `NotApplicable` where the architecture has no place for the change.
        """
        del task
        return model

    def optimizer(self, task: Task, model: nn.Module, optimizer: Optimizer) -> Optimizer:
        """The optimizer to train it with.

        Args:
            task: The task.
            model: The model to train.
            optimizer: What the task made for it.

        Returns:
            The optimizer.
        """
        del task, model
        return optimizer

    def scheduler(self, task: Task, optimizer: Optimizer, scheduler: LRScheduler | None) -> LRScheduler | None:
        """The schedule.

        Args:
            task: The task.
            optimizer: The optimizer.
            scheduler: What the task made for it.

        Returns:
            The schedule.
        """
        del task, optimizer
        return scheduler

    def batches(self, task: Task, split: Split, epoch: int, batches: Sequence[Any]) -> Sequence[Any]:
        """The batches of an epoch.

        Args:
            task: The task.
            split: Which data.
            epoch: Its number, from 0.
            batches: What the task gave.

        Returns:
            The batches.
        """
        del task, split, epoch
        return batches

    def loss(self, task: Task, model: nn.Module, batch: Any) -> torch.Tensor:
        """The loss that is trained on, and logged.

        Args:
            task: The task.
            model: The model that is trained.
            batch: One batch.

        Returns:
            The loss.
        """
        return task.loss(model, batch)

    def bare(self, model: nn.Module) -> nn.Module:
        """The model that the task's own loss can judge.

        Args:
            model: The model that is trained.

        Returns:
            It, or what is inside.
        """
        return model

    def before_update(self, step: int, steps: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Change gradients or rates just before an update.

        Args:
            step: The update about to be taken, from 1.
            steps: Planned ones.
            model: The model, with its gradients.
            optimizer: The optimizer.
        """
        del step, steps, model, optimizer

    def after_update(self, step: int, steps: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Undo what must not outlive the update.

        Args:
            step: The update just taken.
            steps: Planned ones.
            model: The model.
            optimizer: The optimizer.
        """
        del step, steps, model, optimizer

    def span(self, steps: int) -> tuple[int, int]:
        """When it is there.

        Args:
            steps: Planned ones.

        Returns:
            First and last step.
        """
        return 1, steps

    def drawn(self) -> dict[str, float | int | str]:
        """What was drawn, by name."""
        return {k: v for k, v in vars(self).items() if not k.startswith("_") and isinstance(v, float | int | str)}


class Fault(Alteration):
    """What is wrong for the whole run, or from some step on."""

    kind = "fault"


class Incident(Alteration):
    """What goes wrong for a few steps; `at` is when, as a share of the run.

    Args:
        random: Draws when, within the middle of the run.
    """

    kind = "incident"
    lasting: ClassVar[int] = 1
    """Steps or batches."""

    def __init__(self, random: Random) -> None:
        self.at = random.uniform(0.3, 0.7)

    def span(self, steps: int) -> tuple[int, int]:
        """First and last step of it."""
        first = max(1, round(self.at * steps))
        return first, first + self.lasting - 1

    def now(self, step: int, steps: int) -> bool:
        """Whether a step is within it.

        Args:
            step: From 1.
            steps: Planned ones.

        Returns:
            True within.
        """
        first, last = self.span(steps)
        return first <= step <= last


class Healthy(Alteration):
    """What looks alarming and is as it should be."""

    kind = "healthy"


def log_uniform(random: Random, low: float, high: float) -> float:
    """A draw that is uniform in its logarithm.

    Args:
        random: Draws.
        low: Smallest, above 0.
        high: Largest.

    Returns:
        The draw.
    """
    return low * (high / low) ** random.random()


def pair(batch: Any, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of a batch.

    Args:
        batch: A batch.
        name: Who asks, for the reason.

    Returns:
        Both.

    Raises:
        NotApplicable: It is no pair of tensors.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, torch.Tensor) for part in batch):
        return batch[0], batch[1]
    raise NotApplicable(f"{name}: it needs batches (inputs, targets). Got a {type(batch).__name__}.")
