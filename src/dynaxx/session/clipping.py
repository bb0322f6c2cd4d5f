"""Listens to torch's gradient clipping, however a loop has imported it."""

import math
import weakref
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch.nn.utils import clip_grad


class ClipListener(Protocol):
    """What is told of every clip in the process."""

    def clipping(self, parameters: list[torch.Tensor], threshold: float, total: torch.Tensor | None) -> None:
        """Gradients are about to be clipped, by their norm `total` or, where that is None, by value."""
        ...


_listeners: "weakref.WeakSet[ClipListener]" = weakref.WeakSet()


def listen(listener: ClipListener) -> None:
    """Tell a listener of every clip from now on; it is not kept alive.

    Args:
        listener: Whom to tell.
    """
    _listeners.add(listener)
    for function in (clip_grad.clip_grad_value_, cast(Any, clip_grad)._clip_grads_with_norm_):
        # Both are closures of torch's `_no_grad` over the function proper; what other modules imported is the closure.
        cell = next(c for c in function.__closure__ or () if callable(c.cell_contents))
        if not isinstance(cell.cell_contents, _Clip):
            cell.cell_contents = _Clip(cell.cell_contents)


def leave(listener: ClipListener) -> None:
    """Tell a listener no more.

    Args:
        listener: Whom.
    """
    _listeners.discard(listener)


class _Clip:
    """Tells the listeners, then clips; once in a process, and handing on only where nobody listens.

    Args:
        original: `_clip_grads_with_norm_(parameters, max_norm, total_norm, ...)`, through which every
            `clip_grad_norm_` goes, or `clip_grad_value_(parameters, clip_value, ...)`.
    """

    def __init__(self, original: Callable[..., None]) -> None:
        self._original = original

    def __call__(self, parameters: Any, *args: Any, **kwargs: Any) -> None:
        tensors = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        total = kwargs.get("total_norm", args[1] if len(args) > 1 else None)
        threshold = kwargs.get("max_norm", kwargs.get("clip_value", args[0] if args else math.inf))
        if not torch.compiler.is_compiling():
            for listener in list(_listeners):
                listener.clipping(tensors, float(threshold), total if isinstance(total, torch.Tensor) else None)
        self._original(tensors, *args, **kwargs)
