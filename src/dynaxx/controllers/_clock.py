"""A clock that goes on when a rollback sets the steps back: updates done, those that were lost included."""

from typing import TypedDict


class Clock(TypedDict):
    """Plain data, for the checkpoint.

    Args:
        updates: Updates done, as far as they were seen.
        step: The step when it was last looked at.
    """

    updates: int
    step: int


def started() -> Clock:
    """A clock before the first step.

    Returns:
        The clock.
    """
    return {"updates": 0, "step": 0}


def tick(clock: Clock, step: int) -> Clock:
    """Look at the step.

    Args:
        clock: As it was.
        step: Completed optimizer steps; smaller than before after a rollback.

    Returns:
        The clock now; it never goes back.

    Example:
        >>> tick(tick(tick(started(), 100), 40), 60)
        {'updates': 120, 'step': 60}
    """
    return {"updates": clock["updates"] + max(0, step - clock["step"]), "step": step}
