"""Checks of arguments that many calls share; the error names the call, the rule and the value."""

import math
from typing import Any

from dynaxx.errors import BadInput


def at_least(call: str, name: str, value: Any, least: float) -> Any:
    """A finite number not below a bound; whole where the bound is an int.

    Args:
        call: Who asks.
        name: The option.
        value: What was given.
        least: Its smallest value.

    Returns:
        The number.

    Raises:
        BadInput: It is none, or smaller.

    Example:
        >>> at_least("Swa", "every", 5, 1)
        5
    """
    kinds = int if isinstance(least, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value < math.inf:
        kind = "whole" if isinstance(least, int) else "finite"
        raise BadInput(f"{call}({name}=...) must be a {kind} number of at least {least:g}. Got {value!r}.")
    return value
