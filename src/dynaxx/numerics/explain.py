"""What torch says of a missing second derivative, in our words: which operation has none, and what to do."""

import re
from typing import Any

import torch

from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput

_OPERATION = re.compile(r"derivative for (\S+) is not implemented|function (\S+) returned|(\w+Backward\w*)")
_PHRASES = ("is not implemented", "once_differentiable", "does not support double", "no second derivative")


def explained(error: BaseException, objective: Objective) -> BaseException:
    """An error of torch's that says the loss has no second derivative, in our words; any other as it is.

    Args:
        error: What a curvature product raised.
        objective: Whose product it was.

    Returns:
        `BadInput` with the operation's name, or the error.
    """
    if not any(phrase in str(error) for phrase in _PHRASES):
        return error
    found = _OPERATION.search(str(error))
    operation = next((group for group in found.groups() if group), None) if found else marked(objective)
    return missing(operation, str(error).splitlines()[0])


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
        waiting: list[Any] = [objective.loss(0).grad_fn]
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
