"""Faults of the data: labels, scale, order and balance."""

from collections.abc import Sequence
from random import Random
from typing import Any

import torch

from dynaxx.core.task import Split, Task, derive_seed
from dynaxx.errors import NotApplicable
from dynaxx.rescue.alteration import Fault, log_uniform, pair
from dynaxx.rescue.altered import Mapped
from dynaxx.rescue.faults.wiring import needs_classes


def _generator(*parts: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(*parts))


def _permuted(targets: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return targets.flatten()[torch.randperm(targets.numel(), generator=random)].view_as(targets)


def _first(task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    return pair(next(iter(task.batches("train", 0))), type(task).__name__)


def needs_numbers(task: Task, name: str) -> None:
    """Refuse a task whose inputs are not numbers with a scale.

    Args:
        task: The task.
        name: Who asks.
    """
    if not _first(task)[0].is_floating_point():
        raise NotApplicable(f"{name}: it needs inputs that are floating-point numbers.")


class ShuffledLabels(Fault):
    """The targets of each training batch are permuted: labels say nothing of their inputs."""

    name = "shuffled_labels"
    codes = ("D19", "D12", "D10", "D9", "D11")
    causes = ("shuffled_labels",)

    def __init__(self, random: Random) -> None:
        self.salt = random.randrange(2**31)

    def batches(self, task: Task, split: Split, epoch: int, batches: Sequence[Any]) -> Sequence[Any]:
        """Permute."""
        if split == "validation":
            return batches

        def change(index: int, batch: Any) -> Any:
            inputs, targets = pair(batch, self.name)
            return inputs, _permuted(targets, _generator(self.salt, epoch, index))

        return Mapped(batches, change)


class LabelNoise(Fault):
    """A share of the training targets is exchanged within the batch."""

    name = "label_noise"
    codes = ("D19", "D12", "D10", "D11", "D15", "D30")
    causes = ("label_noise", "shuffled_labels")

    def __init__(self, random: Random) -> None:
        self.share, self.salt = random.uniform(0.3, 0.8), random.randrange(2**31)

    def batches(self, task: Task, split: Split, epoch: int, batches: Sequence[Any]) -> Sequence[Any]:
        """Exchange."""
        if split == "validation":
            return batches

        def change(index: int, batch: Any) -> Any:
            inputs, targets = pair(batch, self.name)
            random = _generator(self.salt, epoch, index)
            noisy = torch.rand(targets.shape, generator=random) < self.share
            return inputs, torch.where(noisy, _permuted(targets, random), targets)

        return Mapped(batches, change)


class UnscaledInputs(Fault):
    """All inputs are larger by a factor, and shifted: nobody normalised them."""

    name = "unscaled_inputs"
    codes = ("D18", "D19", "D2", "D6", "D7", "D8", "D31", "D3", "D37", "D12", "D10")
    causes = ("inputs_not_normalised", "initialisation_too_large")

    def __init__(self, random: Random) -> None:
        self.factor, self.shift = log_uniform(random, 30, 1000), random.uniform(0, 1)

    def check(self, task: Task) -> None:
        """Numbers only."""
        needs_numbers(task, self.name)

    def batches(self, task: Task, split: Split, epoch: int, batches: Sequence[Any]) -> Sequence[Any]:
        """Scale both splits: the mistake is in the pipeline."""
        return Mapped(batches, lambda _, batch: (self.factor * (batch[0] + self.shift), batch[1]))


class NaNInputs(Fault):
    """A share of the training batches holds an input that is NaN."""

    name = "nan_inputs"
    codes = ("D5", "D19", "D7")
    causes = ("non_finite_data", "corrupted_batch")
    undone_by = ("skip",)

    def __init__(self, random: Random) -> None:
        self.share, self.salt = log_uniform(random, 0.01, 0.1), random.randrange(2**31)

    def check(self, task: Task) -> None:
        """Numbers only."""
        needs_numbers(task, self.name)

    def batches(self, task: Task, split: Split, epoch: int, batches: Sequence[Any]) -> Sequence[Any]:
        """Spoil some, never the first batch of the run."""
        if split == "validation":
            return batches

        def change(index: int, batch: Any) -> Any:
            random = _generator(self.salt, epoch, index)
            if float(torch.rand((), generator=random)) >= self.share or epoch + index == 0:
                return batch
            inputs = batch[0].clone()
            inputs.view(-1)[int(torch.randint(inputs.numel(), (), generator=random))] = torch.nan
            return inputs, batch[1]

        return Mapped(batches, change)


class RepeatedBatch(Fault):
    """The loader gives the same few batches again and again."""

    name = "repeated_batch"
    codes = ("D19", "D11", "D30")
    causes = ("repeated_batch", "overfitting")

    def __init__(self, random: Random) -> None:
        self.count = random.randint(1, 3)
        self._kept: list[Any] = []

    def batches(self, task: Task, split: Split, epoch: int, batches: Sequence[Any]) -> Sequence[Any]:
        """Always the first ones."""
        if split == "validation":
            return batches
        self._kept = self._kept or [batches[i] for i in range(min(self.count, len(batches)))]
        return [self._kept[i % len(self._kept)] for i in range(len(batches))]


class SortedData(Fault):
    """Training examples come sorted by their target."""

    name = "sorted_data"
    codes = ("D19", "D30", "D6", "D8", "D10", "D21")
    causes = ("unshuffled_data",)

    def __init__(self, random: Random) -> None:
        self.stretch = random.randint(24, 64)

    def check(self, task: Task) -> None:
        """Classes only."""
        needs_classes(task, self.name)

    def batches(self, task: Task, split: Split, epoch: int, batches: Sequence[Any]) -> Sequence[Any]:
        """Sort stretches of batches, by the (first) target of each example."""
        if split == "validation":
            return batches
        return _Sorted(batches, self.stretch)


class _Sorted(Sequence[Any]):
    """Stretches of batches, each sorted when its first batch is asked for."""

    def __init__(self, batches: Sequence[Any], stretch: int) -> None:
        self._batches, self._stretch = batches, stretch
        self._place, self._held = -1, list[Any]()

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        place, within = divmod(index, self._stretch)
        if place != self._place:
            first = place * self._stretch
            parts = [self._batches[i] for i in range(first, min(first + self._stretch, len(self)))]
            inputs, targets = (torch.cat([part[side] for part in parts]) for side in (0, 1))
            order = targets.flatten(1).T[0].argsort(stable=True) if targets.dim() > 1 else targets.argsort(stable=True)
            sizes = [len(part[1]) for part in parts]
            self._held = list(zip(inputs[order].split(sizes), targets[order].split(sizes), strict=True))
            self._place = place
        return self._held[within]


class ClassImbalance(Fault):
    """Nearly all training examples are of one class."""

    name = "class_imbalance"
    codes = ("D19", "D11", "D30", "D12", "D18")
    causes = ("class_imbalance",)
    low, high = 0.97, 0.995

    def __init__(self, random: Random) -> None:
        self.share, self.salt = random.uniform(self.low, self.high), random.randrange(2**31)

    def check(self, task: Task) -> None:
        """One class per example."""
        needs_classes(task, self.name)
        if _first(task)[1].dim() != 1:
            raise NotApplicable(f"{self.name}: it needs one class per example.")

    def batches(self, task: Task, split: Split, epoch: int, batches: Sequence[Any]) -> Sequence[Any]:
        """Exchange most examples for ones of the favoured class."""
        if split == "validation":
            return batches
        inputs, targets = (torch.cat([part[side] for part in batches[:64]]) for side in (0, 1))
        favoured = (targets == targets[0].new_tensor(self.salt % int(targets.max() + 1))).nonzero().flatten()

        def change(index: int, batch: Any) -> Any:
            random = _generator(self.salt, epoch, index)
            own, classes = batch
            swap = (torch.rand(len(classes), generator=random) < self.share).nonzero().flatten()
            rows = favoured[torch.randint(len(favoured), (len(swap),), generator=random)]
            return own.index_copy(0, swap, inputs[rows]), classes.index_copy(0, swap, targets[rows])

        return Mapped(batches, change) if len(favoured) else batches
