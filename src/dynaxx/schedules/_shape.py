"""What the curves share: their rules for steps, warm-up and final share, the linear rise, and progress behind it."""

import math

from dynaxx.errors import BadInput


def counted(curve: str, name: str, value: int | float, steps: int) -> int:
    """Steps that are given as a number of them or as a share of all.

    Args:
        curve: The curve's class, for messages.
        name: The argument's name, for messages.
        value: An integer: steps, at most `steps`; a float: a share in [0, 1].
        steps: Planned optimizer steps.

    Returns:
        The number of steps, in [0, steps].

    Raises:
        BadInput: The value is beyond its range.

    Example:
        >>> counted("Cosine", "warmup", 0.05, 1000), counted("Cosine", "warmup", 50, 1000)
        (50, 50)
    """
    if isinstance(value, float):
        if not 0 <= value <= 1:
            raise BadInput(f"{curve}({name}=...) as a share must be in [0, 1]. Got {value}. For steps give an integer.")
        return round(value * steps)
    if not 0 <= value <= steps:
        raise BadInput(f"{curve}({name}=...) must be in [0, steps = {steps}]. Got {value}. For a share give a float.")
    return int(value)


def check(curve: str, steps: int, warmup: int | float, final: float) -> None:
    """The rules that all curves have in common.

    Args:
        curve: The curve's class, for messages.
        steps: Planned optimizer steps.
        warmup: Steps or share of the linear rise.
        final: The last share of the peak.

    Raises:
        BadInput: One of them is broken.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise BadInput(f"{curve}(steps=...) must be an integer of at least 1. Got {steps!r}.")
    if counted(curve, "warmup", warmup, steps) >= steps and warmup:
        raise BadInput(f"{curve}(warmup=...) must leave steps behind it: less than {steps}. Got {warmup}.")
    if not 0 <= final <= 1:
        raise BadInput(f"{curve}(final=...) must be a share of the peak in [0, 1]. Got {final}.")


def rise(step: int, warmup: int) -> float:
    """Linear warm-up t / w in the t-th update: 1 / w in the first, 1 in the w-th.

    Args:
        step: Completed steps, below `warmup`.
        warmup: Steps of the rise w, at least 1.

    Returns:
        The share of the peak, in (0, 1].
    """
    return (step + 1) / warmup


def progress(step: int, start: int, end: int) -> float:
    """How much of a stretch is behind: 0 at its start, 1 at its end and after.

    Args:
        step: Completed steps, at least `start`.
        start: First step of the stretch.
        end: Step at which it is over.

    Returns:
        A share in [0, 1]; 1 where the stretch is empty.
    """
    return min(1.0, (step - start) / (end - start)) if end > start else 1.0


def between(high: float, low: float, share: float) -> float:
    """`low` at share 0, `high` at share 1.

    Args:
        high: Value at share 1.
        low: Value at share 0.
        share: In [0, 1].

    Returns:
        The value.
    """
    return low + (high - low) * share


def half_cosine(fraction: float) -> float:
    """½ (1 + cos π x): 1 at x = 0, ½ in the middle, 0 at x = 1.

    Args:
        fraction: x in [0, 1].

    Returns:
        A share in [0, 1].
    """
    return 0.5 * (1 + math.cos(math.pi * fraction))
