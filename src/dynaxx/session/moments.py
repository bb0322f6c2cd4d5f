"""When an evaluation or a checkpoint is due."""

from collections.abc import Mapping
from typing import Literal

from dynaxx.errors import BadInput

Due = Literal["evaluation", "checkpoint"]
OFTEN: Mapping[Due, int] = {"evaluation": 50, "checkpoint": 20}
"""How many of each there are in a training."""
UNKNOWN_LENGTH = 100
"""Steps between two of them where the planned number of steps is unknown."""


class Moments:
    """The moments of one run, each granted once.

    Args:
        steps: Planned optimizer steps, or None.
    """

    def __init__(self, steps: int | None) -> None:
        self._steps = steps
        self._granted: dict[str, int] = {}

    def due(self, what: Due, step: int) -> bool:
        """Whether it is time; True once per step at most.

        Args:
            what: "evaluation" or "checkpoint".
            step: Completed optimizer steps.

        Returns:
            True every so many steps, and at the last one.

        Raises:
            BadInput: Something else was asked for.
        """
        if what not in OFTEN:
            raise BadInput(f"run.due(...) must be one of {', '.join(map(repr, OFTEN))}. Got {what!r}.")
        every = UNKNOWN_LENGTH if self._steps is None else max(1, self._steps // OFTEN[what])
        if step == 0 or self._granted.get(what) == step or (step % every and step != self._steps):
            return False
        self._granted[what] = step
        return True

    def clear(self) -> None:
        """The run has gone back: moments come again."""
        self._granted.clear()

    def state_dict(self) -> dict[str, int]:
        """When each was granted last."""
        return dict(self._granted)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `state_dict` returned.
        """
        self._granted = dict(state)
