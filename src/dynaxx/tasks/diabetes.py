"""Diabetes: 442 patients, ten measurements each, the disease's progression a year later; a net that overfits on cue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

from dynaxx.core.task import Split, Task
from dynaxx.tasks import _sklearn
from dynaxx.tasks._batches import Minibatches, permutation
from dynaxx.tasks._sklearn import Pair

_WIDTHS = {"tiny": 64, "small": 128, "medium": 256}


class Diabetes(Task):
    """Predict the progression of diabetes.

    A batch is (measurements, progression): float32 of shapes (batch, 10) and (batch,), standardised by the mean and
    the standard deviation of the training split. Nothing holds the net back: the training loss keeps falling, and
    the validation loss rises after the first hundred steps or so.
    """

    steps = 1500
    batch_size = 32
    threads = 1
    sizes = tuple(_WIDTHS)

    def model(self) -> nn.Module:
        """A perceptron with two hidden layers."""
        assert self.size is not None
        width = _WIDTHS[self.size]
        return nn.Sequential(
            nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1), nn.Flatten(0)
        )

    def optimizer(self, model: nn.Module) -> Optimizer:
        """Adam at a constant rate, without weight decay."""
        return torch.optim.Adam(model.parameters(), lr=2e-3)

    def batches(self, split: Split, seed: int) -> Sequence[Pair]:
        """Training patients in an order drawn from the seed; the validation patients always in the same one."""
        inputs, targets = _data().splits[split]
        order = permutation(len(targets), seed) if split == "train" else torch.arange(len(targets))
        return Minibatches(lambda rows: (inputs[rows], targets[rows]), order, self.batch_size)

    def loss(self, model: nn.Module, batch: Pair) -> torch.Tensor:
        """Mean squared error, in units of the training split's variance."""
        inputs, targets = batch
        return F.mse_loss(model(inputs), targets)

    def metrics(self, model: nn.Module, batch: Pair) -> Mapping[str, torch.Tensor]:
        """Means whose averages over all batches are exact.

        r2 = 1 − (mean squared error) / (variance of the validation targets), and the mean absolute error in the
        target's own unit (a score from 25 to 346).
        """
        inputs, targets = batch
        error = model(inputs) - targets
        data = _data()
        return {"r2": 1 - error.square().mean() / data.variance, "absolute_error": error.abs().mean() * data.unit}

    def facts(self) -> Mapping[str, str | int | float]:
        """Size and hash of both splits."""
        return _sklearn.facts("sklearn.datasets.load_diabetes", _data().splits)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Data:
    """Both splits, standardised; `unit` is the target's standard deviation, `variance` that of the validation split."""

    splits: Mapping[Split, Pair]
    unit: float
    variance: float


@cache
def _data() -> _Data:
    raw_inputs, raw_targets = _sklearn.bundled("diabetes", "load_diabetes", scaled=False)
    held_out = _sklearn.every_fifth(len(raw_targets), seed=0)
    known_inputs, known_targets = raw_inputs[~held_out], raw_targets[~held_out]
    inputs = torch.from_numpy((raw_inputs - known_inputs.mean(axis=0)) / known_inputs.std(axis=0)).float()
    targets = torch.from_numpy((raw_targets - known_targets.mean()) / known_targets.std()).float()
    return _Data(
        splits={"train": (inputs[~held_out], targets[~held_out]), "validation": (inputs[held_out], targets[held_out])},
        unit=float(known_targets.std()),
        variance=float(targets[held_out].var(correction=0)),
    )
