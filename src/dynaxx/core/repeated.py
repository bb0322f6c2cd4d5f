"""Marks passes that a step repeats: SAM's second one is of the same examples, and counts as no further forward."""

import threading
from collections.abc import Callable, Sequence
from weakref import WeakMethod

from torch import Tensor


class _Repeating(threading.local):
    on = False


_repeating = _Repeating()
_listeners: list["WeakMethod[Callable[[Sequence[Tensor]], None]]"] = []


def is_repeated() -> bool:
    """Whether the passes of this thread repeat those that the step has made already."""
    return _repeating.on


def begin_repeating(parameters: Sequence[Tensor]) -> None:
    """Gradients are complete, will be cleared and computed again; who measures the first ones is told now.

    Args:
        parameters: Whose gradients.
    """
    _repeating.on = True
    for reference in tuple(_listeners):
        listener = reference()
        if listener is None:
            _listeners.remove(reference)
        else:
            listener(parameters)


def end_repeating() -> None:
    """Passes are the step's own again."""
    _repeating.on = False


def on_repeat(listener: Callable[[Sequence[Tensor]], None]) -> None:
    """Call a method whenever passes are about to be repeated; its object is not kept alive.

    Args:
        listener: A bound method; it gets the parameters.
    """
    _listeners.append(WeakMethod(listener))


def off_repeat(listener: Callable[[Sequence[Tensor]], None]) -> None:
    """Call it no more.

    Args:
        listener: What was given to `on_repeat`.
    """
    _listeners[:] = [each for each in _listeners if each() not in (None, listener)]
