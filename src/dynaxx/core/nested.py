"""Tells an optimizer's own step from the step of its parent class within it: torch fires the hooks for both."""

import inspect

from torch.optim import Optimizer

_STEP = "Optimizer.profile_hook_step.<locals>.wrapper"
"""What torch puts around every optimizer's step, and what fires its hooks."""


def is_nested(optimizer: Optimizer) -> bool:
    """Whether a step is called by another step of the same optimizer: a subclass that calls its parent's.

    Asked within a hook; it walks the call stack, some microseconds.

    Args:
        optimizer: Whose step it is.

    Returns:
        True within the inner of two.
    """
    frame, calls = inspect.currentframe(), 0
    while frame is not None:
        if frame.f_code.co_qualname == _STEP and frame.f_locals.get("self") is optimizer:
            calls += 1
        frame = frame.f_back
    return calls > 1
