"""Incidents: what goes wrong for a few steps; those of the data come back when the same batches do."""

from abc import abstractmethod
from collections.abc import Sequence
from random import Random
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dynaxx.core.task import Split, Task, derive_seed
from dynaxx.rescue._parts import body, shaped
from dynaxx.rescue.alteration import Incident, log_uniform, pair
from dynaxx.rescue.altered import Mapped
from dynaxx.rescue.faults.data import needs_numbers


class _BadBatches(Incident):
    """Some successive training batches are not as the others."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.salt = random.randrange(2**31)

    @abstractmethod
    def spoil(self, batch: Any, random: torch.Generator) -> Any:
        """A batch of the incident, from a good one."""

    def batches(self, task: Task, split: Split, epoch: int, batches: Sequence[Any]) -> Sequence[Any]:
        """Spoil those whose place in the run is within the incident."""
        if split == "validation":
            return batches
        before = epoch * len(batches)

        def change(index: int, batch: Any) -> Any:
            if not self.now(before + index + 1, task.steps):
                return batch
            return self.spoil(batch, torch.Generator().manual_seed(derive_seed(self.salt, epoch, index)))

        return Mapped(batches, change)


class NaNBatch(_BadBatches):
    """One batch holds inputs that are NaN."""

    name = "nan_batch"
    codes = ("D5", "D19", "D7")
    causes = ("non_finite_data", "corrupted_batch")
    undone_by = ("skip",)

    def check(self, task: Task) -> None:
        """Numbers only."""
        needs_numbers(task, self.name)

    def spoil(self, batch: Any, random: torch.Generator) -> Any:
        """One example becomes NaN."""
        inputs = batch[0].clone()
        inputs[0] = torch.nan
        return inputs, batch[1]


class HundredfoldBatch(_BadBatches):
    """A few batches are a hundred times too large."""

    name = "hundredfold_batch"
    codes = ("D6", "D19", "D2", "D7", "D5")
    causes = ("corrupted_batch", "inputs_not_normalised")
    undone_by = ("skip", "rollback")
    lasting: ClassVar[int] = 2

    def check(self, task: Task) -> None:
        """Numbers only."""
        needs_numbers(task, self.name)

    def spoil(self, batch: Any, random: torch.Generator) -> Any:
        """Scale."""
        return 100 * batch[0], batch[1]


class LabelBurst(_BadBatches):
    """The targets of some twenty batches are permuted."""

    name = "label_burst"
    codes = ("D6", "D19", "D7")
    causes = ("corrupted_batch", "shuffled_labels", "data_shift", "label_noise", "hard_batch")
    undone_by = ("rollback",)
    lasting: ClassVar[int] = 20

    def spoil(self, batch: Any, random: torch.Generator) -> Any:
        """Permute."""
        inputs, targets = pair(batch, self.name)
        return inputs, targets.flatten()[torch.randperm(targets.numel(), generator=random)].view_as(targets)


class HardBatches(_BadBatches):
    """Batches of valid but difficult examples: half of the targets are exchanged, in one batch of ten for a while."""

    name = "hard_batches"
    codes = ("D6", "D19")
    causes = ("hard_batch", "corrupted_batch", "label_noise")
    lasting: ClassVar[int] = 60

    def spoil(self, batch: Any, random: torch.Generator) -> Any:
        """Exchange half of the targets of some."""
        if float(torch.rand((), generator=random)) > 0.1:
            return batch
        inputs, targets = pair(batch, self.name)
        mixed = targets.flatten()[torch.randperm(targets.numel(), generator=random)].view_as(targets)
        return inputs, torch.where(torch.rand(targets.shape, generator=random) < 0.5, mixed, targets)


class RateBump(Incident):
    """The schedule's rate is ten to a hundred times too high for twenty steps.

    It counts the updates that are taken, so that a rollback does not bring it back.
    """

    name = "rate_bump"
    codes = ("D6", "D13", "D8", "D7", "D5", "D2", "D21", "D37")
    causes = ("learning_rate_too_high", "schedule_too_aggressive")
    undone_by = ("rollback",)
    lasting: ClassVar[int] = 20

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.factor = log_uniform(random, 10, 100)
        self._raised = False

    def scheduler(self, task: Task, optimizer: Optimizer, scheduler: LRScheduler | None) -> LRScheduler:
        """The task's schedule, raised while it lasts: a rate that is put back before it is logged no log could show."""
        return shaped(optimizer, scheduler, lambda _: self.factor if self._raised else 1.0)

    def after_update(self, step: int, steps: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Say what the schedule shall set for the next update."""
        self._raised = self.now(step + 1, steps)


class GradientSpike(Incident):
    """The gradient of one tensor is a thousand times too large in one step."""

    name = "gradient_spike"
    codes = ("D6", "D2", "D7", "D5", "D14")
    causes = ("corrupted_batch", "exploding_gradients", "overflow")
    undone_by = ("skip", "rollback")

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.place, self.factor = random.random(), log_uniform(random, 300, 3000)

    def before_update(self, step: int, steps: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Scale one tensor's gradient."""
        if self.now(step, steps):
            held = [p for p in model.parameters() if p.grad is not None]
            chosen = held[int(self.place * len(held))].grad
            assert chosen is not None
            chosen.mul_(self.factor)


class Overflow(Incident):
    """One gradient overflows to infinity, and no scaler skips the update."""

    name = "overflow"
    codes = ("D5", "D16", "D7")
    causes = ("overflow", "exploding_gradients")
    undone_by = ("skip",)

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.place = random.random()

    def before_update(self, step: int, steps: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Write one infinity."""
        if self.now(step, steps):
            held = [p for p in model.parameters() if p.grad is not None]
            chosen = held[int(self.place * len(held))].grad
            assert chosen is not None
            chosen.view(-1)[0] = torch.inf


class BlockStops(Incident):
    """From some step on a block gets no gradients, as where the optimizer holds what the model has replaced."""

    name = "block_stops"
    codes = ("D20", "D14", "D12", "D10", "D9")
    causes = ("stale_parameters", "parameters_not_in_optimizer", "frozen_parameters", "loss_disconnected")

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.at, self.place = random.uniform(0.1, 0.4), random.random()

    def span(self, steps: int) -> tuple[int, int]:
        """From then on."""
        return super().span(steps)[0], steps

    def before_update(self, step: int, steps: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Take the gradients away."""
        if self.now(step, steps):
            for p in body(model, self.place)[1].parameters():
                p.grad = None


class WeightFlip(Incident):
    """One weight jumps to a huge value between two steps, as a flipped bit of its exponent does."""

    name = "weight_flip"
    codes = ("D39", "D6", "D7", "D5", "D2", "D23")
    causes = ("weights_overwritten",)
    undone_by = ("rollback",)

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.place, self.size = random.random(), log_uniform(random, 30, 3000)

    def after_update(self, step: int, steps: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Write it."""
        if self.now(step, steps):
            weight = next(p for p in body(model, self.place)[1].parameters() if p.dim() >= 2)
            with torch.no_grad():
                weight.view(-1)[int(self.place * weight.numel())] = self.size
