"""Sees the optimizer steps that a gradient scaler leaves out: for them no hook of the optimizer fires."""

from collections.abc import Callable
from typing import Any


class ScalerStep:
    """Stands before a scaler's `step`; closed, it only hands on.

    Several watches may share a scaler, and end in any order.

    Args:
        scaler: The `torch.amp.GradScaler`.
        ours: Whether the optimizer that is to be stepped is the watched one.
        begun: How many steps of the watched optimizer have begun.
        left_out: Called when the scaler did not step it.
    """

    def __init__(
        self, scaler: Any, ours: Callable[[Any], bool], begun: Callable[[], int], left_out: Callable[[], None]
    ) -> None:
        self._scaler = scaler
        self._ours = ours
        self._begun = begun
        self._left_out = left_out
        self._closed = False
        self._next = scaler.step
        scaler.step = self

    def __call__(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """Step the optimizer, or not, as the scaler does."""
        if self._closed or not self._ours(optimizer):
            return self._next(optimizer, *args, **kwargs)
        before = self._begun()
        result = self._next(optimizer, *args, **kwargs)
        if self._begun() == before:
            self._left_out()
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return (getattr, (self._scaler, "step"))  # a copy of the scaler has its own step, unwatched

    def close(self) -> None:
        """Take it out again, unless another watch of the scaler still stands before it."""
        self._closed = True
        if self._scaler.__dict__.get("step") is not self:
            return
        del self._scaler.step
        below = self._next
        while isinstance(below, ScalerStep) and below._closed:
            below = below._next
        if isinstance(below, ScalerStep):
            self._scaler.step = below
