"""What torch says of a missing second derivative, in our words: which operation has none, and what to do."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput

_OPERATION = re.compile(r"derivative for (\S+) is not implemented|function (\S+) returned|(\w+Backward\w*)")
_PHRASES = ("is not implemented", "once_differentiable", "does not support double", "no second derivative")


@contextmanager
def explaining(objective: Objective) -> Generator[None]:
    """Says in our words what torch says within where the loss has no second derivative; any other error as it is.

    Args:
        objective: Whose products are taken within.

    Raises:
        BadInput: An operation has no second derivative; the message names it.
    """
    try:
        yield
    except RuntimeError as error:  # NotImplementedError is one
        said = str(error)
        if not any(phrase in said for phrase in _PHRASES):
            raise
        found = _OPERATION.search(said)
        operation = next(filter(None, found.groups()), None) if found else marked(objective)
        raise missing(operation, said.splitlines()[0]) from error


def missing(operation: str | None, reason: str) -> BadInput:
    """What is said where a second derivative is missing.

    Args:
        operation: The operation that has none, where it is known.
        reason: What torch says of it.

    Returns:
        The error to raise.
    """
    which = f"the operation {operation} has none" if operation else "an operation has none"
    return BadInput(
        f"Hessian: the loss has no second derivative: {which} ({reason}). "
        "Replace it, or take mode='finite_difference', which needs gradients alone."
    )


def marked(objective: Objective) -> str | None:
    """The first custom function in the loss that is marked once_differentiable; costs one forward.

    `torch.autograd.grad` passes by such a function without a word: the product lacks its part.

    Args:
        objective: The loss and the point.

    Returns:
        The function's name, or None.
    """
    if not objective.batches:
        return None
    with objective.prepared(), torch.enable_grad():
        return once_differentiable(objective.loss(0))


def once_differentiable(value: Tensor) -> str | None:
    """The first custom function behind a value that is marked once_differentiable.

    Args:
        value: With its graph.

    Returns:
        The function's name, or None.
    """
    waiting: list[Any] = [value.grad_fn]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        function = type(node).__dict__.get("_forward_cls")  # only nodes of custom functions have it
        if function is not None and "once_differentiable" in str(function.backward.__code__.co_qualname):
            return str(function.__name__)
        waiting.extend(parent for parent, _ in node.next_functions)
    return None
