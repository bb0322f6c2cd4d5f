"""How much a model's answers to fixed inputs change from one evaluation to the next, and how much they repeat."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from dynaxx.core.isolation import evaluation
from dynaxx.core.task import Task
from dynaxx.errors import BadInput

GRAM = 4
"""Words in a row that count as a piece: seq-rep-4 of Welleck and others (2020), by which texts are compared since."""


class Samples:
    """The answers of a task's model at the last evaluation.

    Args:
        task: Gives them: see `Task.samples`.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._last: list[str] | torch.Tensor | None = None

    @property
    def parts(self) -> Mapping[str, "Samples"]:
        """Itself, for checkpoints; nothing where the task has no samples, whose checkpoints then need no more."""
        return {} if type(self._task).samples is Task.samples else {"samples": self}

    def take(self, model: nn.Module) -> dict[str, float]:
        """Have the model answer, leaving modes and random streams as they were.

        Args:
            model: The model.

        Returns:
            `samples.agreement`, from the second time on, and of texts `samples.repetition`; what is not there is left
            out.

        Raises:
            BadInput: The answers are of no kind that can be compared, or other ones than last time.
        """
        with evaluation(model):
            given = self._task.samples(model)
        if given is None:
            return {}
        last, self._last = self._last, self._read(given)
        values: dict[str, float] = {}
        if last is not None:
            values["samples.agreement"] = self._compare(last, self._last)
        if isinstance(self._last, list) and (said := repetition(self._last)) is not None:
            values["samples.repetition"] = said
        return values

    def state_dict(self) -> dict[str, Any]:
        """The answers, so that a resumed run compares the next ones with them."""
        return {"last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `state_dict` returned.
        """
        self._last = state["last"]

    def _read(self, given: Any) -> list[str] | torch.Tensor:
        if isinstance(given, torch.Tensor | np.ndarray):
            return torch.as_tensor(given).detach().cpu().clone()
        if isinstance(given, Sequence) and not isinstance(given, str):
            values = cast("Sequence[Any]", given)
            if all(isinstance(value, str) for value in values):
                return list(values)
            if all(isinstance(value, int | np.integer) for value in values):
                return torch.tensor([int(value) for value in values])
        raise BadInput(
            f"{type(self._task).__name__}.samples(model) must return a list of texts, a list of labels, a tensor, an "
            f"array or None. Got {type(given).__name__}."
        )

    def _compare(self, last: list[str] | torch.Tensor, now: list[str] | torch.Tensor) -> float:
        shapes = [(len(each),) if isinstance(each, list) else tuple(each.shape) for each in (last, now)]
        if shapes[0] != shapes[1] or type(last) is not type(now):
            raise BadInput(
                f"{type(self._task).__name__}.samples(model) must answer the same inputs at every call. "
                f"Got shape {shapes[1]} after {shapes[0]}."
            )
        return agreement(last, now)


def agreement(last: Sequence[str] | torch.Tensor, now: Sequence[str] | torch.Tensor) -> float:
    """How far two lots of answers to the same inputs agree.

    Args:
        last: Texts; integers of any shape; or floating-point outputs of shape (samples, ...), of which each sample is
            one vector; of shape (values,), one vector in all.
        now: Likewise, of the same shape.

    Returns:
        The share of texts or integers that are equal; of vectors, the mean cosine of the angle between the two, where
        two vectors of zeros agree. NaN where there is nothing to compare.

    Example:
        >>> agreement(["a", "b"], ["a", "c"])
        0.5
        >>> agreement(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        0.5
    """
    if not isinstance(last, torch.Tensor) or not isinstance(now, torch.Tensor):
        return sum(bool(a == b) for a, b in zip(last, now, strict=True)) / len(last) if len(last) else math.nan
    if not (last.is_floating_point() or now.is_floating_point()):
        return float((last == now).double().mean())
    a, b = (each.double().reshape(len(each) if each.dim() > 1 else 1, -1) for each in (last, now))
    lengths = a.norm(dim=1) * b.norm(dim=1)
    zeros = (a == 0).all(dim=1) & (b == 0).all(dim=1)
    cosines = torch.where(lengths == 0, zeros.double(), (a * b).sum(dim=1) / lengths)
    return float(cosines.mean())


def repetition(texts: Sequence[str]) -> float | None:
    """The share of pieces of four words that the same text had before.

    1 − distinct pieces / pieces of each text, its mean over the texts: seq-rep-4 of Welleck and others, "Neural text
    generation with unlikelihood training" (2020).

    Args:
        texts: The texts; words are what stands between white space. Those of fewer than four are left out.

    Returns:
        Between 0 and 1; None where no text is long enough.

    Example:
        >>> repetition(["a b c d e", "a a a a a"])
        0.25
    """
    shares: list[float] = []
    for words in map(str.split, texts):
        pieces = [tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]
        if pieces:
            shares.append(1 - len(set(pieces)) / len(pieces))
    return float(np.mean(shares)) if shares else None
