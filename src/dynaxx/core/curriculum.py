"""Easy to hard: batches drawn from the easiest share of the examples, which grows over the training."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar, overload

import numpy as np
import torch
from torch import nn

from dynaxx.core.isolation import evaluation
from dynaxx.core.objective import LossFunction
from dynaxx.core.task import derive_seed
from dynaxx.errors import BadInput

Batch = TypeVar("Batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """Which share of the examples, the easiest first, is in use: c₀ at first, all of them from `until` on.

    With x = t / (until · T) in step t of T: "linear" c₀ + (1 − c₀) x; "root" (c₀^p + (1 − c₀^p) x)^(1/p), which adds
    new examples at a rate that keeps each as often seen as the ones before (Platanios et al. 2019); "step" as linear,
    but in `stages` equal jumps (Hacohen and Weinshall 2019).

    Args:
        shape: "root", "linear" or "step".
        start: c₀ in (0, 1]; 0.01 is that of Platanios et al.
        until: Share of the training after which all examples are in use; chosen: half of it.
        power: p of "root"; 2 is their choice.
        stages: Jumps of "step".

    Raises:
        BadInput: An option is out of range.

    Example:
        >>> pacing = Pacing(shape="linear", start=0.2, until=0.5)
        >>> [round(pacing.share(x), 2) for x in (0.0, 0.25, 0.5, 0.9)]
        [0.2, 0.6, 1.0, 1.0]
    """

    shape: Literal["root", "linear", "step"] = "root"
    start: float = 0.01
    until: float = 0.5
    power: float = 2.0
    stages: int = 4

    def __post_init__(self) -> None:
        rules = {
            "shape": (self.shape in ("root", "linear", "step"), "'root', 'linear' or 'step'"),
            "start": (0 < self.start <= 1, "a share in (0, 1]"),
            "until": (0 < self.until <= 1, "a share of the training in (0, 1]"),
            "power": (math.isfinite(self.power) and self.power > 0, "positive and finite"),
            "stages": (isinstance(self.stages, int) and self.stages >= 1, "an integer of at least 1"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise BadInput(f"Pacing({name}=...) must be {rule}. Got {getattr(self, name)!r}.")

    @classmethod
    def read(cls, words: str) -> Self:
        """A pacing in the words of the command line.

        Args:
            words: "shape:option=value,…" with the options above; the shape alone has the defaults.

        Returns:
            The pacing.

        Raises:
            BadInput: There is no such shape or option, or a value cannot be read or is out of range.

        Example:
            >>> Pacing.read("linear:start=0.1")
            Pacing(shape='linear', start=0.1, until=0.5, power=2.0, stages=4)
        """
        shape, _, options = words.partition(":")
        kinds: dict[str, Callable[[str], Any]] = {"start": float, "until": float, "power": float, "stages": int}
        given: dict[str, Any] = {"shape": shape.strip()}
        for option in filter(None, options.split(",")):
            name, _, value = (part.strip() for part in option.partition("="))
            try:
                given[name] = kinds[name](value)
            except (KeyError, ValueError):
                form = f"shape:option=value,… with the options {', '.join(kinds)}"
                raise BadInput(f"A curriculum is written {form}. Got {option!r} in {words!r}.") from None
        return cls(**given)

    def share(self, done: float) -> float:
        """The share of the examples in use.

        Args:
            done: Share of the training that is behind, in [0, 1].

        Returns:
            In [start, 1].
        """
        x = min(1.0, done / self.until)
        if self.shape == "root":
            first = self.start**self.power
            return min(1.0, (first + (1 - first) * x) ** (1 / self.power))
        if self.shape == "step":
            x = math.floor(x * self.stages) / self.stages
        return self.start + (1 - self.start) * x


class Curriculum(Sequence[list[int]]):
    """The indices of each batch of a whole training: `DataLoader(data, batch_sampler=Curriculum(...))`.

    One pass over it is the training, not an epoch. Batch t is drawn from the easiest share in use, without repeats
    within it, and depends on nothing but the arguments and t: any position is found again at no cost. Examples of equal
    difficulty keep their order.

    Args:
        difficulty: One finite number per example, easy ones small, such as those of `reference_losses`.
        steps: Batches of the training.
        batch_size: Examples in a batch; at least as many are always in use.
        pacing: How the share in use grows.
        seed: Of the draws.

    Raises:
        BadInput: A difficulty is not finite, there are fewer examples than in a batch, or a count is below 1.

    Example:
        >>> easy_first = Curriculum([0.3, 0.1, 0.9, 0.2], steps=10, batch_size=2, pacing=Pacing(start=0.5))
        >>> sorted(easy_first[0]), len(easy_first)
        ([1, 3], 10)
    """

    def __init__(
        self,
        difficulty: Sequence[float] | np.ndarray | torch.Tensor,
        *,
        steps: int,
        batch_size: int,
        pacing: Pacing | None = None,
        seed: int = 0,
    ) -> None:
        values = difficulty.detach().cpu().numpy() if isinstance(difficulty, torch.Tensor) else np.asarray(difficulty)
        if values.ndim != 1 or not np.isfinite(values).all():
            raise BadInput(
                "Curriculum(difficulty=...) must be one finite number per example. "
                f"Got shape {values.shape} with {int((~np.isfinite(values)).sum())} that are not finite."
            )
        if steps < 1 or batch_size < 1:
            raise BadInput(
                f"Curriculum(steps=..., batch_size=...) must be at least 1 each. Got {steps} and {batch_size}."
            )
        if len(values) < batch_size:
            raise BadInput(
                f"Curriculum(batch_size=...) must be at most the number of examples, {len(values)}. Got {batch_size}."
            )
        self.pacing = Pacing() if pacing is None else pacing
        self._order = np.argsort(values, kind="stable")
        self._steps, self._batch_size, self._seed = steps, batch_size, seed

    def __len__(self) -> int:
        return self._steps

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[i] for i in range(self._steps)[index]]
        step = range(self._steps)[index]
        generator = np.random.default_rng(derive_seed(self._seed, "curriculum", step))
        return self._order[generator.choice(self.in_use(step), self._batch_size, replace=False)].tolist()

    def in_use(self, step: int) -> int:
        """How many of the easiest examples a batch is drawn from.

        Args:
            step: Batches before it.

        Returns:
            At least the size of a batch, at most all.
        """
        share = self.pacing.share(step / self._steps)
        return max(self._batch_size, math.ceil(share * len(self._order)))

    def batches(self, gather: Callable[[torch.Tensor], Batch]) -> "CurriculumBatches[Batch]":
        """The batches themselves, for `Task.batches("train", seed)`.

        Args:
            gather: Makes a batch of the rows it is given, an int64 vector.

        Returns:
            A sequence of `steps` batches, made when asked for.

        Example:
            `return Curriculum(scores, steps=self.steps, batch_size=64, seed=seed).batches(lambda i: (x[i], y[i]))`
        """
        return CurriculumBatches(self, gather)


class CurriculumBatches(Sequence[Batch]):
    """The batches of a curriculum by position; made by `Curriculum.batches`."""

    def __init__(self, curriculum: Curriculum, gather: Callable[[torch.Tensor], Batch]) -> None:
        self._curriculum, self._gather = curriculum, gather

    def __len__(self) -> int:
        return len(self._curriculum)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return self._gather(torch.tensor(self._curriculum[index]))


def reference_losses(model: nn.Module, loss: LossFunction, examples: Iterable[Any]) -> torch.Tensor:
    """The loss of a reference model on each example, as its difficulty.

    Args:
        model: A trained model, smaller or of another run; its modes and the random streams stay as they are.
        loss: `loss_fn(model, batch)` → mean loss of a batch.
        examples: One batch of a single example each, in the order of the data.

    Returns:
        float64 of shape (examples,), in the unit of the loss.

    Raises:
        BadInput: There is no example.
    """
    with evaluation(model):
        losses = [loss(model, example).detach().double().reshape(()) for example in examples]
    if not losses:
        raise BadInput("reference_losses(examples=...) must hold at least one example. Got none.")
    return torch.stack(losses).cpu()
