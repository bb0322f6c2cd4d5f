"""A loss in blocks: medians of neighbouring steps and how far such a median wanders by chance."""

from dataclasses import dataclass

import numpy as np

from dynaxx.detectors._read import Track
from dynaxx.detectors._spikes import TINY
from dynaxx.errors import NotApplicable
from dynaxx.numerics.robust_scale import CONSISTENT, center_and_scale

LEAST = 8
"""Fewest blocks: a level, its noise and a change need so many."""
SIZE = 16
"""Steps in a block of a short log: half of its steps may be outliers."""
MOST = 320
"""Blocks of a long log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Medians of a loss.

    Args:
        first: First step of each block.
        last: Last step of each block.
        medians: Their levels; as natural logarithms where `log`.
        noise: Standard deviation of one median about its trend, robust.
        log: Whether the loss is nowhere negative.
    """

    first: np.ndarray
    last: np.ndarray
    medians: np.ndarray
    noise: float
    log: bool

    def __len__(self) -> int:
        return len(self.medians)

    def value(self, median: float) -> float:
        """A median as a loss."""
        return float(np.exp(median)) if self.log else float(median)


def blocks(loss: Track, size: int | None = None) -> Blocks:
    """Cut a loss into blocks of equal numbers of rows, the newest complete.

    Args:
        loss: Finite, one number a step.
        size: Rows in a block; None: `SIZE`, more where there would be more than `MOST` blocks.

    Returns:
        The blocks.

    Raises:
        NotApplicable: There are fewer than `LEAST`.
    """
    rows = max(SIZE, -(-len(loss) // MOST)) if size is None else size
    count = len(loss) // rows
    if count < LEAST:
        raise NotApplicable(f"{len(loss)} rows of {loss.name} make {count} blocks of {rows}; {LEAST} are needed")
    rest = len(loss) - count * rows
    steps, values = loss.steps[rest:].reshape(count, rows), loss.values[rest:].reshape(count, rows)
    log = bool(loss.values.min() >= 0 and loss.values.max() > 0)
    table = np.log(np.maximum(values, TINY * loss.values.max())) if log else values
    medians, scales = center_and_scale(table)
    # What scatters inside a block gives the noise where steps are independent; what scatters from one median to the
    # next, where they are not. The larger one is believed.
    inside = 1.2533 * float(np.median(scales)) / np.sqrt(rows)
    jumps = np.diff(medians)
    between = CONSISTENT * float(np.median(np.abs(jumps - np.median(jumps)))) / np.sqrt(2)
    return Blocks(first=steps[:, 0], last=steps[:, -1], medians=medians, noise=max(inside, between, 1e-12), log=log)
