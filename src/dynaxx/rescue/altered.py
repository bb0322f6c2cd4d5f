"""Altered: a task with something planted in it, for `dynaxx.watch` and every loop; the user's own task too."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, overload

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dynaxx.core.loop import epoch_seed
from dynaxx.core.task import Split, Task
from dynaxx.errors import NotApplicable
from dynaxx.rescue.alteration import Alteration

Batch = TypeVar("Batch")
_EPOCHS = 4096
"""Epochs whose seeds are known: more than any run of the suite has."""


class Altered(Task):
    """A task with an alteration; without one it is the clean twin.

    Args:
        task: The task.
        alteration: What is planted; None: nothing.
        seed: The run's seed, by which batches are told apart: a batch is altered on every replay alike.

    Raises:
        NotApplicable: The task has no place for it.

    Example:
        ```python
        task = Altered(MyTask(), plant("rate_too_high", seed=3), seed=0)
        ```
    """

    def __init__(self, task: Task, alteration: Alteration | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.task, self.alteration, self.seed = task, alteration, seed
        if alteration is not None:
            alteration.check(task)
            alteration.settings(task)
        self.steps, self.batch_size, self.threads, self.size = task.steps, task.batch_size, task.threads, task.size
        self.passes = 0
        """Losses taken with a gradient: of training, of trials, of probes."""
        self._updates = 0
        self._epochs: dict[int, int] = {}

    def model(self) -> nn.Module:
        """The model to train."""
        model = self.task.model()
        return model if self.alteration is None else self.alteration.model(self.task, model)

    def optimizer(self, model: nn.Module) -> Optimizer:
        """The optimizer; what the alteration does to single updates hangs on its hooks, before anybody else's."""
        alteration = self.alteration
        if alteration is None:
            return self.task.optimizer(model)
        optimizer = alteration.optimizer(self.task, model, self.task.optimizer(alteration.bare(model)))
        self._updates = 0

        def before(*_: Any) -> None:
            self._updates += 1
            alteration.before_update(self._updates, self.steps, model, optimizer)

        def after(*_: Any) -> None:
            alteration.after_update(self._updates, self.steps, model, optimizer)

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        return optimizer

    def scheduler(self, optimizer: Optimizer) -> LRScheduler | None:
        """The schedule."""
        self.task.steps = self.steps
        rates = [group["lr"] for group in optimizer.param_groups]
        own = self.task.scheduler(optimizer)
        chosen = own if self.alteration is None else self.alteration.scheduler(self.task, optimizer, own)
        if chosen is None:  # a schedule that is made and dropped has set the first rate of its warm-up
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        return chosen

    def batches(self, split: Split, seed: int) -> Sequence[Any]:
        """One epoch."""
        self.task.batch_size = self.batch_size
        own = indexed(self.task.batches(split, seed))
        if self.alteration is None:
            return own
        return self.alteration.batches(self.task, split, self._epoch(seed) if split == "train" else 0, own)

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The loss that is trained on."""
        self.passes += torch.is_grad_enabled()
        return (
            self.task.loss(model, batch) if self.alteration is None else self.alteration.loss(self.task, model, batch)
        )

    def metrics(self, model: nn.Module, batch: Any) -> Mapping[str, torch.Tensor | float]:
        """The task's own."""
        return self.task.metrics(self.bare(model), batch)

    def weight(self, batch: Any) -> float:
        """The task's own."""
        return self.task.weight(batch)

    def facts(self) -> Mapping[str, str | int | float]:
        """The task's own."""
        return self.task.facts()

    def bare(self, model: nn.Module) -> nn.Module:
        """The model that the task's own loss can judge.

        Args:
            model: The trained one.

        Returns:
            It, or what is inside.
        """
        return model if self.alteration is None else self.alteration.bare(model)

    def judged(self) -> "Judged":
        """The task that judges this one's models: the untouched loss, on the data as the run sees them."""
        return Judged(self)

    def _epoch(self, seed: int) -> int:
        if not self._epochs:
            self._epochs = {epoch_seed(self.seed, epoch): epoch for epoch in range(_EPOCHS)}
        if seed not in self._epochs:
            raise NotApplicable(f"Altered(seed={self.seed}): the run has another seed. Give the run's own.")
        return self._epochs[seed]


class Judged(Task):
    """The clean loss of an altered training's model.

    Args:
        altered: The training.
    """

    def __init__(self, altered: Altered) -> None:
        super().__init__()
        self._altered = altered

    def model(self) -> nn.Module:
        """A fresh model of the altered training."""
        return self._altered.model()

    def optimizer(self, model: nn.Module) -> Optimizer:
        """Its optimizer."""
        return self._altered.optimizer(model)

    def batches(self, split: Split, seed: int) -> Iterable[Any]:
        """Its data."""
        return self._altered.batches(split, seed)

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The untouched task's loss."""
        return self._altered.task.loss(self._altered.bare(model), batch)

    def weight(self, batch: Any) -> float:
        """The untouched task's."""
        return self._altered.task.weight(batch)


class Mapped(Sequence[Batch]):
    """Batches changed one by one as they are taken.

    Args:
        batches: The batches.
        change: `(index, batch) -> batch`.
    """

    def __init__(self, batches: Sequence[Batch], change: Callable[[int, Batch], Batch]) -> None:
        self._batches, self._change = batches, change

    def __len__(self) -> int:
        return len(self._batches)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        place = range(len(self))[index]
        return self._change(place, self._batches[place])


def indexed(batches: Iterable[Batch]) -> Sequence[Batch]:
    """Batches that any index finds; what is no sequence is held in memory for the epoch.

    Args:
        batches: One epoch.

    Returns:
        The same batches.
    """
    return batches if isinstance(batches, Sequence) else list(batches)
