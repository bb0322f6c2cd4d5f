"""Whether a loss still falls: the trend of its last stretch, what it promises, and what could be seen at all."""

import math
from dataclasses import dataclass

import numpy as np

from dynaxx.detectors._read import Track
from dynaxx.errors import NotApplicable
from dynaxx.numerics.trend import Trend, points_to_see, trend

ROWS = 64
"""Fewest rows of a stretch: 16 medians of four, the least from which a trend and its error are worth having."""
BLOCK = 4
"""Rows behind one median of the trend: a lone outlier is voted down, and little of the trend's sharpness is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The last stretch of a loss.

    Args:
        first: Its first step.
        last: Its last step.
        trend: Line through medians of the loss, at their steps.
        start: Level at the beginning of the run.
        level: The line's value at the end of the stretch.
        size: Steps between two medians.
    """

    first: int
    last: int
    trend: Trend
    start: float
    level: float
    size: float

    @property
    def gained(self) -> float:
        """Share of the first level that the run has gained: 0 nothing, 1 all of it."""
        return (self.start - self.level) / abs(self.start) if self.start else 0.0

    def chance(self, share: float, within: float) -> float:
        """P(the loss falls by more than a share of its level in the next steps), the trend going on."""
        return self.trend.improves(share * abs(self.level), within)

    def promise(self, within: float) -> float:
        """The largest share of the level that the loss may fall by in the next steps, at 95 %."""
        slope = self.trend.slope - (self.trend.bound(0.95) - self.trend.slope)
        return -slope * within / abs(self.level) if self.level else 0.0

    def odometer(self, share: float) -> float:
        """How many more steps until an improvement by a share of the level could be told from noise."""
        points = points_to_see(share * abs(self.level), max(self.trend.noise, 1e-300), self.trend.correlation)
        return max(points, 1.0) * self.size


def progress(loss: Track, share: float = 0.25, since: int | None = None) -> Progress:
    """Look at the last stretch of a loss.

    Args:
        loss: Finite, one number a step.
        share: Of the rows, at least `ROWS` of them.
        since: Look at no row before this step.

    Returns:
        The stretch.

    Raises:
        NotApplicable: There are fewer than `ROWS` rows.
    """
    rows = max(ROWS, int(share * len(loss)))
    end = loss if since is None else loss.between(since, loss.steps[-1])
    end = end.rows(slice(max(0, len(end) - rows), None))
    if len(end) < ROWS:
        raise NotApplicable(f"{loss.name} has {len(end)} rows in the stretch looked at; {ROWS} are needed for a trend")
    block = max(BLOCK, -(-len(end) // 128))
    count = len(end) // block
    rest = len(end) - count * block
    steps = end.steps[rest:].reshape(count, block).mean(axis=1)
    medians = np.median(end.values[rest:].reshape(count, block), axis=1)
    found = trend(steps, medians)
    return Progress(
        first=int(end.steps[rest]),
        last=int(end.steps[-1]),
        trend=found,
        start=opening(loss),
        level=found.level,
        size=float(np.median(np.diff(steps))),
    )


def opening(loss: Track) -> float:
    """The loss at which a run began: of its first row and the median of its first three the smaller.

    The first row is one batch's, the second and third may have exploded already.
    """
    first = loss.values[:3]
    return float(min(first[0], np.median(first))) if len(first) else math.nan


def ceiling(loss: Track) -> float:
    """The highest loss that is still the beginning: the largest of the first three rows.

    A run that begins with a low loss, as fine-tuning does, begins with a noisy one.
    """
    return float(np.max(loss.values[:3])) if len(loss) else math.nan
