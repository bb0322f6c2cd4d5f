"""Keeps the last training batches, for a look at what was just trained on."""

from collections import deque
from typing import Any

KEPT = 8
"""Batches that are kept: one more than seven makes a sign-flip test over them able to reach p = 1/128."""


class Recent:
    """References to the last batches, as the loader gave them: on their device, no copies.

    Memory: that of `KEPT` batches where the loader makes each anew; none beyond the data set's where it holds them. A
    loop that writes into its batches changes what is kept.

    Args:
        keep: Whether to keep any.
    """

    def __init__(self, keep: bool) -> None:
        self._batches: deque[Any] = deque(maxlen=KEPT if keep else 0)

    @property
    def batches(self) -> tuple[Any, ...]:
        """The batches, oldest first."""
        return tuple(self._batches)

    def add(self, batch: Any) -> None:
        """Take in what the loop is about to train on.

        Args:
            batch: The batch.
        """
        self._batches.append(batch)

    def clear(self) -> None:
        """Forget them: the run has gone back."""
        self._batches.clear()
