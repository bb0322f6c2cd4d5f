"""What a method of navigation must be: optimizers, averages of weights, perturbed steps, learning-rate curves."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import nn

T = TypeVar("T")


class ModelOptimizer(torch.optim.Optimizer, ABC):
    """A plain `torch.optim.Optimizer` that knows which parameters of a model it is meant for, and what it needs.

    Its constructor takes parameters, named parameters or groups of them, as every optimizer of torch does. Its state
    holds tensors and plain values only, so that `torch.load(weights_only=True)` reads it; `step` never writes `.grad`.
    """

    passes: ClassVar[float] = 1.0
    """Forward and backward passes over a batch per step."""
    memory: ClassVar[str]
    """State per parameter, in words: "2 × parameters"."""

    @classmethod
    @abstractmethod
    def for_model(cls, model: nn.Module, **options: Any) -> Self:
        """The optimizer of a whole model, with the groups that the method asks for.

        Args:
            model: The model; frozen parameters are left out.
            options: Those of the constructor.

        Returns:
            The optimizer. Raises `BadInput` where an option breaks a rule.
        """

    @abstractmethod
    def planned_bytes(self) -> int:
        """Memory that the state will take on this rank, known before the first step."""


class Averager(ABC):
    """An average of a model's weights along a run, kept beside them in float32 at least.

    Its constructor takes the model. It reads the weights after each step. `swapped` is the only moment at which it
    writes them, and it undoes that.
    """

    memory: ClassVar[str]
    """Kept beside the weights, in words: "1 × parameters"."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether anything has been averaged yet."""

    @abstractmethod
    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """Have `update` called after each step of an optimizer.

        Args:
            optimizer: The one that trains the model.

        Returns:
            The averager itself.
        """

    @abstractmethod
    def detach(self) -> None:
        """Follow the optimizer no more; what was averaged stays."""

    @abstractmethod
    def update(self) -> None:
        """Take in the weights as they are after an optimizer step; nothing waits for the device."""

    @abstractmethod
    def restart(self) -> None:
        """Forget what was averaged: weights across a switch of the optimizer have no common basin."""

    @abstractmethod
    def swapped(self) -> AbstractContextManager[None]:
        """The averages in the places of the weights; after it the weights are there again, bit for bit."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for the checkpoint."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `state_dict` returned.
        """


class Perturber(ABC):
    """A change of weights or gradients within one step, exactly undone before the update.

    The loop calls

    perturber.begin()
    forward, backward                 (of every micro-batch)
    if perturber.ascend():            gradients at the weights are complete
        forward, backward again       on the same micro-batches
    perturber.restore()
    optimizer.step()
    perturber.after_step(optimizer)

    which is `around`; a loop that clips or scales in between takes `gradients` and does the rest itself.
    """

    passes: ClassVar[float] = 1.0
    """Forward and backward passes over a batch per step, at the default options."""
    memory: ClassVar[str] = "0"
    """Kept beside the weights, in words."""

    @abstractmethod
    def begin(self) -> None:
        """Before the first forward of a step; undoes what a step that failed has left."""

    @abstractmethod
    def ascend(self) -> bool:
        """The gradients at the weights are complete.

        Returns:
            Whether they were cleared and must be computed again, at moved weights. The random streams then stand where
            `begin` found them, so that the passes draw the same numbers.
        """

    @abstractmethod
    def restore(self) -> None:
        """Put the weights back bit for bit, and leave the gradients that the optimizer is to use."""

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """What is done to the weights apart from the optimizer's update.

        Args:
            optimizer: The one that has taken its step, for its learning rates.
        """
        del optimizer

    def gradients(self, compute: Callable[[], T]) -> T:
        """Compute the gradients that the optimizer is to use.

        Args:
            compute: Forward and backward of all micro-batches of the step; may be called twice.

        Returns:
            What its first call returned, at the weights themselves.
        """
        self.begin()
        try:
            found = compute()
            if self.ascend():
                compute()
        finally:
            self.restore()
        return found

    def around(self, optimizer: torch.optim.Optimizer, closure: Callable[[], T], *, scaler: Any = None) -> T:
        """One whole step of a loop.

        Args:
            optimizer: Its `step` is called; clear the gradients yourself.
            closure: Forward and backward (of the scaled loss, under a scaler) of all micro-batches.
            scaler: The `torch.amp.GradScaler`; it then takes the step, and is updated.

        Returns:
            What the closure's first call returned.

        Example:
            ```python
            def closure():
                loss = loss_fn(model(x), y)
                loss.backward()
                return loss
            loss = sam.around(optimizer, closure); optimizer.zero_grad()
            ```
        """
        found = self.gradients(closure)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        self.after_step(optimizer)
        return found

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for the checkpoint."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `state_dict` returned.
        """


class Curve(ABC):
    """A learning rate as a share of its peak: a pure function of the step, the same after any resume.

    Constructed as a frozen dataclass from `steps`, the planned optimizer steps, and options with defaults.
    """

    steps: int
    """Planned optimizer steps."""

    @abstractmethod
    def factor(self, step: int) -> float:
        """The share of the peak rate in a step.

        Args:
            step: Completed optimizer steps when the update is taken, from 0; beyond `steps` the last value holds.

        Returns:
            Usually in [0, 1].
        """
