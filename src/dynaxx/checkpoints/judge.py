"""Where blends are measured: validation examples that choose, others that judge, and a model to do it with."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dynaxx.checkpoints._mean import Shapes, checked
from dynaxx.core.batches import split as split_batch
from dynaxx.core.chosen import bare_model
from dynaxx.core.isolation import isolated_random
from dynaxx.core.loop import epoch_seed, validation_seed
from dynaxx.core.objective import LossFunction, Objective
from dynaxx.core.parameters import bare_name
from dynaxx.core.task import Task, derive_seed, leading
from dynaxx.errors import BadInput
from dynaxx.numerics.batch_statistics import normalisations, renewed
from dynaxx.numerics.symmetry import state

Split = Literal["choose", "score", "tune", "judge"]
"""choose: orders the parts, finds barriers, picks what is blended; score and tune are its halves, for a temperature
that must not be tuned on what gave the scores. judge: sees one blend and one part, once."""

UNITS = 64
"""Into so many groups the validation examples are split at least, where they can be: 32 of them judge. With 32 pairs a
difference of half their standard deviation is found four times in five."""
STATISTICS = 1024
"""Training examples from which statistics of batch normalisation are taken; some hundred a channel suffice."""


class Judge:
    """Losses at weights that stream in, on disjoint splits of the validation examples.

    Half of the examples judge, the others choose, drawn at random in groups. The loss must be a mean over the examples
    of a batch, or batches must be kept whole.

    Args:
        model: Its architecture is used, and a copy of it is written.
        loss_fn: `loss_fn(model, batch)` → mean loss over the examples of the batch.
        batches: Validation batches that no weights were trained on.
        weight: As for `Objective`.
        training: Training batches for the statistics of batch normalisation; needed where the model has them.
        seed: Of the splits.
        whole: Keep batches as they are instead of splitting them into about `UNITS` groups.

    Raises:
        BadInput: There are fewer than four groups, or training batches are missing.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: Sequence[Any],
        *,
        weight: Callable[[Any], float] | None = None,
        training: Iterable[Any] = (),
        seed: int = 0,
        whole: bool = False,
    ) -> None:
        groups = list(batches) if whole else _groups(batches)
        if len(groups) < 4:  # two that judge, one that scores, one that tunes
            raise BadInput(
                f"Judge(batches=...): the validation examples must be in at least 4 groups. Got {len(groups)}. "
                "Give more examples, or smaller batches."
            )
        self.model = copy.deepcopy(bare_model(model))
        self.objective = Objective(self.model, loss_fn, groups, weight=weight)
        self.passes = 0.0
        """Passes over all validation examples so far."""
        self.renewals = 0
        """How often the statistics of batch normalisation were taken anew."""
        self._statistics = _statistics(self.model, loss_fn, training, weight)
        order = np.random.default_rng(derive_seed(seed, "splits")).permutation(len(groups))
        half, quarter = len(groups) // 2, len(groups) // 4
        score, tune = order[half : len(order) - quarter], order[len(order) - quarter :]
        self._splits = {"judge": order[:half], "score": score, "tune": tune, "choose": order[half:]}
        self._shares = np.array(self.objective.shares)

    @classmethod
    def of_task(cls, task: Task, seed: int = 0) -> "Judge":
        """The judge of a task.

        Args:
            task: Its model, loss, validation batches and training batches.
            seed: The run's: its validation batches are those of the run.

        Returns:
            The judge.
        """
        with isolated_random():
            batches = list(task.batches("validation", validation_seed(seed)))
            training = task.batches("train", epoch_seed(seed, 0))
            return cls(task.model(), task.loss, batches, weight=task.weight, training=training, seed=seed)

    @property
    def normalised(self) -> bool:
        """Whether the model has statistics that are taken anew at every point."""
        return self._statistics is not None

    @property
    def statistics_examples(self) -> int:
        """Training examples that they are taken from."""
        return 0 if self._statistics is None else int(self._statistics.weight)

    @property
    def shapes(self) -> Shapes:
        """Name → shape of what `put` expects."""
        return {name: tuple(t.shape) for name, t in self._own().items()}

    def put(self, weights: Iterable[tuple[str, Tensor]], whose: str) -> None:
        """Copy weights into the judge's own model, in its types, and take statistics of batch normalisation anew.

        Args:
            weights: Bare name → tensor, parameters and persistent buffers.
            whose: What they are called in messages.

        Raises:
            BadInput: They are of another architecture.
        """
        own = self._own()
        with torch.no_grad():
            for name, value in checked(weights, self.shapes, whose):
                own[name].copy_(value)
        if self._statistics is not None:
            here = state(self._statistics)
            for name, value in renewed(self._statistics, here).items():
                if value is not here[name]:
                    here[name].copy_(value)
            self.renewals += 1

    def weights(self) -> dict[str, Tensor]:
        """Copies of what was put last, statistics renewed, by bare name."""
        return {name: tensor.clone() for name, tensor in self._own().items()}

    def losses(self, split: Split) -> np.ndarray:
        """The mean loss of each group of a split, at the weights that were put last.

        Args:
            split: Which.

        Returns:
            Shape (groups,).
        """
        chosen = self._splits[split]
        self.passes += float(self._shares[chosen].sum())
        with torch.no_grad(), self.objective.prepared():
            return np.array([self._mean(int(i)) for i in chosen])

    def shares(self, split: Split) -> np.ndarray:
        """The weight of each group of a split; they sum to 1.

        Args:
            split: Which.

        Returns:
            Shape (groups,).
        """
        found = self._shares[self._splits[split]]
        return found / found.sum()

    def score(self, losses: np.ndarray, split: Split) -> float:
        """The mean over all examples of a split.

        Args:
            losses: What `losses` returned.
            split: Which.

        Returns:
            In the unit of the loss.
        """
        return float(self.shares(split) @ losses)

    def _mean(self, i: int) -> float:
        share = self.objective.shares[i]
        return float(self.objective.loss(i)) / share if share else 0.0

    def _own(self) -> dict[str, Tensor]:
        """The model's state under its bare names; tied tensors under each of theirs."""
        own: Mapping[str, Any] = self.model.state_dict()
        return {bare_name(name): value for name, value in own.items() if isinstance(value, Tensor)}


def _groups(batches: Sequence[Any]) -> list[Any]:
    """Batches split until there are about `UNITS`; what has no leading dimension stays whole."""
    total = sum(leading(batch) or 1 for batch in batches)
    return [part for batch in batches for part in split_batch(batch, max(1, total // UNITS))]


def _statistics(
    model: nn.Module, loss_fn: LossFunction, training: Iterable[Any], weight: Callable[[Any], float] | None
) -> Objective | None:
    if not normalisations(model):
        return None
    kept = list(_some(training))
    if not kept:
        raise BadInput(
            f"Judge(training=...): {type(model).__name__} has batch normalisation, whose statistics do not fit "
            "averaged weights. Give some training batches."
        )
    return Objective(model, loss_fn, kept, weight=weight)


def _some(batches: Iterable[Any]) -> Iterator[Any]:
    """Batches until they hold `STATISTICS` examples."""
    held = 0
    for batch in islice(batches, STATISTICS):
        yield batch
        held += leading(batch) or 1
        if held >= STATISTICS:
            return
