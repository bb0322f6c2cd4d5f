"""Keeps the last training batches, for a look at what was just trained on."""

from collections import deque
from itertools import islice
from typing import Any

from torch import Tensor

from dynaxx.core.batches import mapped

KEPT = 8
"""Batches that are always kept: one more than seven makes a sign-flip test over them able to reach p = 1/128."""
LONGEST = 64
"""Most that are kept beyond them, to replay one of the steps before a look: looks come every 20 steps at first."""
ROOM = 2**26
"""Bytes that all kept batches may take where there are more than `KEPT`: 64 MiB, nothing beside a training's own."""
NOT_KEPT = "batches are kept under navigate='advise' or 'act' only"


class Recent:
    """References to the last batches, as the loader gave them: on their device, no copies.

    Memory: that of `KEPT` batches, or `ROOM`, where the loader makes each anew; none beyond the data set's where it
    holds them. A loop that writes into its batches changes what is kept.

    Args:
        keep: Whether to keep any.
    """

    def __init__(self, keep: bool) -> None:
        self._kept: deque[tuple[Any, int]] = deque()
        self._most = KEPT + LONGEST if keep else 0
        self._bytes = 0

    @property
    def batches(self) -> tuple[Any, ...]:
        """The last batches, `KEPT` at most, oldest first."""
        return tuple(batch for batch, _ in islice(self._kept, max(0, len(self._kept) - KEPT), None))

    @property
    def earlier(self) -> tuple[Any, ...]:
        """Those kept before them, oldest first."""
        return tuple(batch for batch, _ in islice(self._kept, max(0, len(self._kept) - KEPT)))

    def add(self, batch: Any) -> None:
        """Take in what the loop is about to train on.

        Args:
            batch: The batch.
        """
        if not self._most:
            return
        self._kept.append((batch, _bytes(batch)))
        self._bytes += self._kept[-1][1]
        while len(self._kept) > self._most or (len(self._kept) > KEPT and self._bytes > ROOM):
            self._bytes -= self._kept.popleft()[1]

    def clear(self) -> None:
        """Forget them: the run has gone back."""
        self._kept.clear()
        self._bytes = 0


def _bytes(batch: Any) -> int:
    """Bytes of all tensors of a batch."""
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    mapped(batch, note)
    return sum(sizes)
