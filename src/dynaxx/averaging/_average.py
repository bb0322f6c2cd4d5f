"""What all averages share: following an optimizer, counting its steps, standing in for the weights."""

from abc import abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from dynaxx.averaging._weights import Weights
from dynaxx.core.methods import Averager
from dynaxx.core.nested import is_nested
from dynaxx.errors import BadInput

Source = nn.Module | Iterable[tuple[str, Tensor]]
"""A model, or names and parameters; without a model no statistics of batch normalisation are averaged."""


class WeightAverage(Averager):
    """An average that a rule of its own takes weights into.

    A step that left the weights as they were (skipped under a gradient scaler on fused optimizers) counts as any other:
    to know that it did would mean waiting for the device. Where the optimizer's `step` is not called, there is no step.

    Args:
        source: The model, or names and parameters; frozen parameters are left out.

    Raises:
        BadInput: There is nothing to average.
    """

    def __init__(self, source: Source) -> None:
        self.weights = Weights(type(self).__name__, source)
        self.step = 0
        """Steps seen since the start or the last restart."""
        self._hook: Any = None
        self._swapped = False

    @abstractmethod
    def take(self, step: int) -> None:
        """See the weights behind a step.

        Args:
            step: Its number since the start or the last restart; the first is 1.
        """

    @abstractmethod
    def forget(self) -> None:
        """Drop what was taken."""

    @abstractmethod
    def current(self) -> Sequence[Tensor]:
        """The averages by the order of `weights.names`; only called when `ready`."""

    @abstractmethod
    def pack(self) -> dict[str, Any]:
        """The rule's own state."""

    @abstractmethod
    def unpack(self, state: Mapping[str, Any]) -> None:
        """Take the rule's own state up again.

        Args:
            state: What `pack` returned.
        """

    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """Have `update` called after each step of an optimizer.

        Args:
            optimizer: The one that trains the model.

        Returns:
            The averager itself.

        Raises:
            BadInput: It is attached already.
        """
        if self._hook is not None:
            raise BadInput(f"{type(self).__name__}.attach(optimizer): it is attached already. Call detach() first.")
        self._hook = optimizer.register_step_post_hook(self._after_step)
        return self

    def detach(self) -> None:
        """Follow the optimizer no more; what was averaged stays."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def update(self) -> None:
        """Take in the weights as they are after an optimizer step.

        Raises:
            BadInput: The averages stand in the places of the weights.
        """
        if self._swapped:
            raise BadInput(f"{type(self).__name__}.update(): within swapped() it would average its own averages.")
        self.step += 1
        with torch.no_grad():
            self.take(self.step)

    def restart(self) -> None:
        """Forget what was averaged, and count steps anew."""
        self.step = 0
        self.forget()

    @contextmanager
    def swapped(self) -> Generator[None]:
        """The averages in the places of the weights; after it the weights are there again, bit for bit.

        It holds one further copy of the weights meanwhile. Statistics of batch normalisation are averaged too; exact
        ones are found by `recompute_batch_norm` within.

        Raises:
            BadInput: Nothing has been averaged yet, or it is entered a second time.
        """
        call = f"{type(self).__name__}.swapped()"
        if self._swapped:
            raise BadInput(f"{call}: the averages are in the places of the weights already.")
        if not self.ready:
            raise BadInput(f"{call}: nothing has been averaged yet, after {self.step} steps. Ask `ready` first.")
        with torch.no_grad():
            averages = self.current()
        self._swapped = True
        try:
            with self.weights.replaced(averages):
                yield
        finally:
            self._swapped = False

    def averages(self) -> dict[str, Tensor]:
        """Name → average in float32 at least, copies; sharded as the parameters are.

        Raises:
            BadInput: Nothing has been averaged yet.
        """
        if not self.ready:
            raise BadInput(f"{type(self).__name__}.averages(): nothing has been averaged yet. Ask `ready` first.")
        with torch.no_grad():
            return self.weights.named([t.clone() for t in self.current()])

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name and plain values; they are the live ones, to be saved before the next step."""
        return {"step": self.step, **self.pack()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `state_dict` returned; it is copied.

        Raises:
            BadInput: It is the state of another model.
        """
        self.unpack(state)
        self.step = int(state["step"])

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        if not is_nested(optimizer):
            self.update()


class RunningAverage(WeightAverage):
    """One average per tensor, into which weights enter with a share that the rule names."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.count = 0
        """How many times weights have entered."""
        self._averages: list[Tensor] | None = None

    @abstractmethod
    def share(self, step: int) -> float | None:
        """The share with which weights enter that are not the first to do so; None where they do not enter.

        Args:
            step: Number of the step behind which they are seen; the first is 1.
        """

    @property
    def ready(self) -> bool:
        """Whether anything has been averaged yet."""
        return self._averages is not None

    def take(self, step: int) -> None:
        """See the weights behind a step."""
        share = self.share(step)
        if share is None:
            return
        if self._averages is None:
            self._averages = self.weights.copies(wide=True)
        else:
            self.weights.blend(self._averages, self.weights.live(), share)
        self.count += 1

    def forget(self) -> None:
        """Drop the average."""
        self.count, self._averages = 0, None

    def current(self) -> Sequence[Tensor]:
        """The averages."""
        assert self._averages is not None
        return self._averages

    def pack(self) -> dict[str, Any]:
        """How many have entered, and their average."""
        found = self._averages
        return {"count": self.count, "averages": None if found is None else self.weights.named(found)}

    def unpack(self, state: Mapping[str, Any]) -> None:
        """Take them up again."""
        saved = state["averages"]
        self._averages = None if saved is None else self.weights.read(saved, wide=True)
        self.count = int(state["count"])
