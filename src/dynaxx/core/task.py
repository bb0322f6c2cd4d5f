"""A Task: what the command line and the map need to know of a training, in one file of the user's."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dynaxx.errors import BadInput

Split = Literal["train", "validation"]


class Task(ABC):
    """A model, its data, its loss and its optimizer.

    Subclass it in any file and run it: `dynaxx train file.py:MyTask`. The class is constructed without arguments, or
    with `size` where it declares `sizes`.

    Example:
        >>> class Line(Task):
        ...     '''Fit y = 2x.'''
        ...     steps, batch_size = 20, 8
        ...     def model(self):
        ...         return nn.Linear(1, 1)
        ...     def optimizer(self, model):
        ...         return torch.optim.SGD(model.parameters(), lr=0.1)
        ...     def batches(self, split, seed):
        ...         x = torch.randn(64, 1, generator=torch.Generator().manual_seed(seed))
        ...         return [(b, 2 * b) for b in x.split(self.batch_size)]
        ...     def loss(self, model, batch):
        ...         return nn.functional.mse_loss(model(batch[0]), batch[1])
        >>> len(Line().batches("train", seed=0))
        8
    """

    steps: int = 1000
    """Planned optimizer steps."""
    batch_size: int = 32
    """Examples in a training batch; settable, so that a plan may change it."""
    threads: int | None = None
    """torch threads on CPU; small nets are 10-40 times slower on two busy cores than on one thread. None: torch's."""
    retained: tuple[str, ...] = ()
    """Further splits that `batches` gives, such as an earlier task's validation. Each is evaluated beside the
    validation and logged as `<split>_loss`: what the training forgets, or keeps (`--perturber ewc:…`)."""
    sizes: ClassVar[tuple[str, ...]] = ()
    """What `--size` may be, smallest first; empty: the task has one size."""
    size: str | None = None
    """The chosen size."""
    width: int | None = None
    """The width of its hidden layers, where `scaled` makes the task of another width; None: it cannot be scaled."""

    def __init__(self, size: str | None = None) -> None:
        if size is not None:
            if not self.sizes:
                raise BadInput(f"{type(self).__name__} has one size only: leave out --size {size}.")
            if size not in self.sizes:
                raise BadInput(f"{type(self).__name__}(size=...) must be one of {', '.join(self.sizes)}. Got {size!r}.")
        self.size = size if size is not None else (self.sizes[0] if self.sizes else None)

    def scaled(self, width: int) -> "Task":
        """The same task with hidden layers of another width: what a search by proxy trains first.

        Args:
            width: Of the hidden layers.

        Returns:
            A new task whose `width` is this one, with parameters of the same names. Raises `BadInput` where the task
            declares no width.
        """
        raise BadInput(f"{type(self).__name__}.scaled({width}): the task has one width. Declare `width` and `scaled`.")

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh model, initialised from torch's global random stream."""

    @abstractmethod
    def optimizer(self, model: nn.Module) -> Optimizer:
        """The optimizer for a model.

        Args:
            model: What `model()` returned.

        Returns:
            A `torch.optim.Optimizer` over its parameters.
        """

    @abstractmethod
    def batches(self, split: Split, seed: int) -> Iterable[Any]:
        """One epoch of data, the same for the same seed.

        Args:
            split: "train" or "validation", or one of `retained`.
            seed: Derived from the run's seed and the epoch.

        Returns:
            A re-iterable of batches. A sequence (`__len__` and `__getitem__`) resumes at any position at no cost.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The mean loss over the examples of a batch.

        Args:
            model: The model.
            batch: One batch.

        Returns:
            A scalar tensor.
        """

    def scheduler(self, optimizer: Optimizer) -> LRScheduler | None:
        """The learning-rate schedule, stepped once per optimizer step; None: constant.

        Args:
            optimizer: What `optimizer(model)` returned.

        Returns:
            The scheduler or None.
        """
        del optimizer
        return None

    def metrics(self, model: nn.Module, batch: Any) -> Mapping[str, torch.Tensor | float]:
        """Further means over the examples of a batch, by name; logged on the validation batches as val_<name>.

        Args:
            model: The model, in evaluation mode.
            batch: One validation batch.

        Returns:
            Name → mean value.
        """
        del model, batch
        return {}

    def samples(self, model: nn.Module) -> Sequence[str] | Sequence[int] | torch.Tensor | np.ndarray | None:
        """The model's answers to a few fixed inputs, the same ones at every call; asked for at every evaluation.

        Logged are how far they agree with those of the evaluation before (`samples.agreement`: the share that is equal,
        or of vectors the mean cosine between them) and how much texts repeat themselves (`samples.repetition`), which
        is what convergence and overtraining are told by.

        Args:
            model: The model, in evaluation mode and without gradients.

        Returns:
            Texts; labels; integers of any shape; outputs, floating-point of shape (samples, ...). None: there are none.
        """
        del model
        return None

    def difficulty(self) -> Sequence[float] | np.ndarray | torch.Tensor | None:
        """How hard each training example is, easy ones small: what `--curriculum` goes by, together with `examples`.

        Returns:
            One finite number per training example, in an order of the task's own; None: it is not known.
        """
        return None

    def examples(self, rows: torch.Tensor) -> Any:
        """A training batch of given examples; needed where `difficulty` is declared.

        Args:
            rows: Their places in `difficulty`, int64.

        Returns:
            The batch, as those of `batches`.
        """
        name = type(self).__name__
        raise BadInput(f"{name}.examples(rows): {name} has a difficulty, and no way to its examples. Override it.")

    def weight(self, batch: Any) -> float:
        """How many examples (or tokens) a batch's mean loss stands for.

        Args:
            batch: One batch.

        Returns:
            By default the leading dimension of the first tensor in it.
        """
        size = leading(batch)
        if size is None:
            raise BadInput(
                f"{type(self).__name__}.weight(batch): no tensor in a {type(batch).__name__} batch. Override weight."
            )
        return float(size)

    def facts(self) -> Mapping[str, str | int | float]:
        """What a reader of the log must know of the data: its hash, its size, where it comes from."""
        return {}


def leading(batch: Any) -> int | None:
    """The leading dimension of the first tensor within a batch.

    Args:
        batch: A tensor, or nested tuples, lists and mappings of them.

    Returns:
        The dimension; None where there is no tensor with one.
    """
    tensor = first_tensor(batch)
    return None if tensor is None or tensor.dim() == 0 else tensor.shape[0]


def first_tensor(batch: Any) -> torch.Tensor | None:
    """The first tensor within nested tuples, lists and mappings.

    Args:
        batch: Anything.

    Returns:
        The tensor or None.
    """
    if isinstance(batch, torch.Tensor):
        return batch
    if isinstance(batch, Mapping):
        batch = tuple(batch.values())
    if isinstance(batch, list | tuple):
        for part in batch:
            found = first_tensor(part)
            if found is not None:
                return found
    return None


@lru_cache(maxsize=1024, typed=True)  # probes ask for the same few at every point
def derive_seed(*parts: int | str) -> int:
    """A seed that depends on every part and on nothing else, in [0, 2⁶³).

    Args:
        parts: The run's seed, the epoch, the purpose.

    Returns:
        The first 63 bits of the BLAKE2b hash of the parts.

    Example:
        >>> derive_seed(0, "train", 1) == derive_seed(0, "train", 1) != derive_seed(0, "train", 2)
        True
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
