"""The state of what else steers a training: schedulers, scalers, random generators, anything with a state_dict."""

import random
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch

from dynaxx.errors import BadInput


@runtime_checkable
class Stateful(Protocol):
    """Anything that gives its state and takes it back."""

    def state_dict(self) -> Any:
        """The state."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Take a state back.

        Args:
            state_dict: What `state_dict` returned.
        """


def capture_object(name: str, thing: Any) -> dict[str, Any]:
    """The state of an object.

    Args:
        name: What to call it in an error message ("extra['ema']").
        thing: An object with `state_dict` and `load_state_dict`, or a random generator of torch, NumPy or Python.

    Returns:
        `kind`: the names of its class and of those of the schedulers within it, `state`.

    Raises:
        BadInput: It is nothing of the kind.
    """
    if isinstance(thing, torch.Generator):
        state = thing.get_state()
    elif isinstance(thing, np.random.Generator):
        state = dict(thing.bit_generator.state)
    elif isinstance(thing, np.random.RandomState):
        state = thing.get_state(legacy=False)
    elif isinstance(thing, random.Random):
        state = thing.getstate()
    elif isinstance(thing, Stateful):
        state = thing.state_dict()
    else:
        raise BadInput(
            f"capture({name}) must be an object with state_dict() and load_state_dict(), or a random generator of "
            f"torch, NumPy or Python. Got {type(thing).__name__}: wrap it in such an object."
        )
    return {"kind": _kind(thing), "state": state}


def check_object(name: str, saved: Mapping[str, Any], thing: Any) -> None:
    """Compare a saved state with an object, before anything is overwritten.

    Args:
        name: What to call it in an error message.
        saved: What `capture_object` returned.
        thing: The object to restore.

    Raises:
        BadInput: It is of another class. (A scheduler takes any state without a word.)
    """
    if saved["kind"] != (kind := _kind(thing)):
        raise BadInput(
            f"restore({name}): the checkpoint was saved with {_said(saved['kind'])}. Got {_said(kind)}. Build it as it "
            "was then, or leave it out and set its position yourself."
        )


def restore_object(name: str, saved: Mapping[str, Any], thing: Any) -> None:
    """Put a saved state back.

    Args:
        name: What to call it in an error message.
        saved: What `capture_object` returned; it stays as it is.
        thing: The object.

    Raises:
        BadInput: The object refuses the state.
    """
    state = deepcopy(saved["state"])  # schedulers keep what they are given, and some take it apart
    try:
        if isinstance(thing, torch.Generator):
            thing.set_state(state)
        elif isinstance(thing, np.random.Generator):
            thing.bit_generator.state = state
        elif isinstance(thing, np.random.RandomState):
            thing.set_state(state)
        elif isinstance(thing, random.Random):
            thing.setstate(state)
        else:
            thing.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise BadInput(
            f"restore({name}): {type(thing).__name__} refuses the saved state: {type(error).__name__}: {error}. "
            "Build it as it was when the checkpoint was saved."
        ) from error


def _kind(thing: Any) -> list[str]:
    """The class, and the classes of the schedulers that a scheduler is made of."""
    own = type(thing.bit_generator if isinstance(thing, np.random.Generator) else thing).__qualname__
    within = cast("list[Any]", getattr(thing, "_schedulers", [])) if isinstance(thing, _Composed) else []
    return [own, *(kind for part in within for kind in _kind(part))]


_Composed = (torch.optim.lr_scheduler.SequentialLR, torch.optim.lr_scheduler.ChainedScheduler)


def _said(kind: list[str]) -> str:
    return kind[0] + (f" of {', '.join(kind[1:])}" if kind[1:] else "")
