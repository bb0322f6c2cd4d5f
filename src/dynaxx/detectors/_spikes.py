"""Where a positive stream jumps: lone outliers and lasting rises, against its own trailing level and its own tail."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.ndimage import median_filter

from dynaxx.core.findings import Threshold
from dynaxx.errors import NotApplicable
from dynaxx.numerics.exceedance import exceedance_threshold
from dynaxx.numerics.robust_scale import center_and_scale, trailing_baseline

WINDOW = 128
"""Steps that a step is compared with: OLMo's and Levanter's rules look back as far."""
LEAST = 24
"""Kept steps in the window before anything is compared: the MAD of 24 is known to 25 %."""
SPAN = 5
"""A rise lasts where the median over so many steps is high: three of five hard batches in a row are rare at 1 %."""
RATE = Threshold(
    value=1.5e-5,
    origin="a seventh of the budget of one alarm in 10 000 steps; a normal stream then alarms beyond 4.2 deviations",
    false_alarms="benchmarks/spikes.py, seven kinds of noise of 160 000 steps: at most 0.5 notes in 10 000 steps, "
    "and 0.06 alarms",
)
LASTING = Threshold(
    value=7.0,
    origin="robust deviations of the running median of five; its tail is thin whatever that of the steps is: a step's "
    "tail of t⁻³ becomes t⁻⁹",
    false_alarms="with RATE",
)
INDEPENDENT = 0.536
"""Standard deviation of the median of five independent unit normal numbers; correlation can only raise it."""
RAMP = Threshold(
    value=1000.0,
    origin="lone outliers are judged once so many steps have shown the stream's tail; of batches that are hard once "
    "in a hundred, all but one stream in 20 000 have then shown one",
    false_alarms="with RATE",
)
EARLY = Threshold(
    value=4.0,
    origin="before that a lone outlier must be so many times the stream's level; Lightning's rule is 3 times",
    false_alarms="with RATE",
)
NOWHERE = 8.0
"""A loss over all of the 64 before, from which it came at once whatever followed: of the rescue suite's rates too high
none begins above 1.6, of its batches scaled a hundredfold all do."""
GONE = 3.0
"""And from which it was gone again, within three rows."""
BEFORE = 8
"""Steps for which what a batch did to an optimizer's moments may go unseen in the loss: after a batch scaled a
hundredfold Adam's loss was back for three and rose then."""
SAMPLING = 0.25
"""A scale this near to the usual one, in logarithms, is the usual one: three standard errors of a MAD of 128."""
FLOOR = 0.005
"""Least scale, relative: below half a percent a rise is of no account whatever the noise."""
TINY = 1e-6
"""Share of the largest value below which all are taken for equal: a mean over a batch in float32 can be zero."""
THROWN = Threshold(
    value=2.0,
    origin="times the largest of the 64 rows before, in 16 rows on end: 16 of 80 exchangeable rows are the 16 largest, "
    "in whatever noise, once in 10¹⁶; the factor answers for what is correlated",
    false_alarms="of 602 healthy rescue runs eight are thrown up so, tenfold and more, and back after 8 to 13 rows; "
    "incidents of the suite last 16 and more",
)
RUN, PAST = 16, 64
"""Rows on end, and rows before, of THROWN: where a loss jumps about fivefold, its MAD hides a rise by a hundred."""
TESTED = 8
"""Largest outliers that are judged one by one, each without the larger ones in the sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spike:
    """One stretch of high values.

    Args:
        first: Index of its first row.
        last: Index of its last row.
        peak: Index of its highest row.
        ratio: The peak over the level before; for a lasting rise, of its running median.
        score: Its height in scales of the noise.
        lasting: Whether the median over five rows was high, not one row alone.
        open: Whether it lasts to the end of the stream.
    """

    first: int
    last: int
    peak: int
    ratio: float
    score: float
    lasting: bool
    open: bool


def spikes(values: np.ndarray) -> list[Spike]:
    """Find them.

    Values are compared as logarithms with the median of the steps before, in units of the residuals' MAD; points that
    stick out leave the baseline. The stream's own tail sets the threshold.

    Args:
        values: Positive numbers, shape (n,), one per step.

    Returns:
        Spikes in order.

    Raises:
        NotApplicable: A value is negative, or there are fewer than 60.
    """
    if len(values) < 60:
        raise NotApplicable(f"{len(values)} steps are too few to know the noise; 60 are needed")
    if values.min() < 0 or values.max() == 0:
        raise NotApplicable("the values are not positive: ratios mean nothing")
    logs = np.log(np.maximum(values, TINY * values.max()))
    residuals, scale = _residuals(logs)
    first = int(np.argmax(np.isfinite(residuals)))
    known, scale = np.nan_to_num(residuals[first:], nan=0.0), scale[first:]
    lasting, center = _lasting(known)
    lone = _lone(known, scale, lasting)
    found = [_spike(known, center, scale, a, b, lasting=True) for a, b in _stretches(lasting, join=SPAN)]
    found += [_spike(known, known, scale, a, b, lasting=False) for a, b in _stretches(lone & ~lasting, join=0)]
    found = [_moved(spike, first) for spike in found]
    high = [spike for spike in _thrown(values) if not any(s.lasting and s.last >= spike.first for s in found)]
    return sorted(found + high, key=lambda spike: spike.first)


def sudden(values: np.ndarray, first: int, peak: int) -> float:
    """Share of a rise that came in one step, in logarithms: near 1 for another kind of batch, less where a run climbs.

    Args:
        values: Positive numbers, shape (n,).
        first: Index of the first high value.
        peak: Index of the highest one.

    Returns:
        The largest step towards the peak over the whole way from the level before.

    Example:
        >>> round(sudden(np.array([1.0, 1.0, 1.0, 4.0, 4.0]), 3, 4), 2), round(sudden(2.0 ** np.arange(9), 4, 8), 2)
        (1.0, 0.14)
    """
    logs = np.log(np.maximum(values, TINY * max(float(values.max()), 1e-300)))
    level = float(np.median(logs[max(0, first - 32) : max(first - 1, 1)]))
    part = logs[max(0, first - 3) : peak + 1]
    whole = float(logs[peak]) - level
    return float(np.diff(part).max()) / whole if len(part) > 1 and whole > 0 else 1.0


def beyond(values: np.ndarray, at: int) -> float:
    """A value over the largest of the 64 before it; 1 where there is none."""
    before = values[max(0, at - 64) : at]
    return float(values[at] / before.max()) if len(before) and before.max() > 0 else 1.0


class Blow(NamedTuple):
    """A value out of nowhere that was gone again at once.

    Args:
        at: Index of its first row.
        ratio: How many times the largest of the 64 rows before it was.
    """

    at: int
    ratio: float


def blow(values: np.ndarray, at: int) -> Blow | None:
    """What one batch does: a value far beyond all before, after which the next ones are as before.

    A run that is thrown off its course by its rate stays high. What the batch has done to weights and moments may show
    later, so that the last `BEFORE` rows are looked at.

    Args:
        values: Positive numbers, shape (n,).
        at: Index of the row where something was noticed.

    Returns:
        The blow; None where there is none, or too little follows to tell.

    Example:
        >>> blow(np.array([1.0, 2.0, *[1.0] * 7, 30.0, 1.0]), 10)
        Blow(at=9, ratio=15.0)
    """
    start = max(0, at - BEFORE)
    near, before = values[start : at + 1], values[max(0, start - 64) : start]
    if len(before) == 0 or before.max() <= 0:
        return None
    above = np.flatnonzero(near > NOWHERE * before.max())
    after = values[start + int(np.argmax(near)) + 1 :][:3]
    if len(above) == 0 or len(after) == 0 or after.min() > GONE * before.max():
        return None
    return Blow(start + int(above[0]), float(near.max() / before.max()))


def _residuals(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    every = 16 if len(logs) <= 5000 else 32
    keep = np.ones(len(logs), dtype=bool)
    residuals, scale = logs, logs
    for _ in range(2):
        base = trailing_baseline(logs, keep, window=WINDOW, every=every, least=LEAST)
        if not np.isfinite(base.scale).any():
            raise NotApplicable("the stream jumps about so much that it has no level to compare with")
        typical = max(float(np.nanmedian(base.scale)), FLOOR)
        sampled = np.abs(np.log(np.maximum(base.scale, 1e-300) / typical)) < SAMPLING
        scale = np.maximum(np.where(sampled, typical, np.maximum(base.scale, 0.5 * typical)), FLOOR)
        residuals = (logs - base.center) / scale
        keep = ~(residuals > 4.0)
    return residuals, scale


def _lasting(residuals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows belong to a lasting rise, and the running median, in units of the residuals."""
    half = SPAN // 2
    center = np.full(len(residuals), -np.inf)
    inner = slice(half, len(residuals) - half)
    center[inner] = median_filter(residuals, size=SPAN)[inner]
    middle, spread = center_and_scale(center[inner])
    core = np.flatnonzero(center > middle + float(LASTING) * max(float(spread), INDEPENDENT))
    high = np.zeros(len(residuals), dtype=bool)
    for offset in range(-half, half + 1):
        high[core + offset] = True
    return high & (residuals > 1.0), center


def _thrown(values: np.ndarray) -> list[Spike]:
    """The latest stretch that lies beyond all before it, whatever the noise: a test of ranks, where scales fail."""
    if len(values) < PAST + RUN:
        return []
    highest = np.lib.stride_tricks.sliding_window_view(values, PAST)[:-RUN].max(axis=1)
    lowest = np.lib.stride_tricks.sliding_window_view(values[PAST:], RUN).min(axis=1)
    at = np.flatnonzero(lowest > float(THROWN) * highest)
    if len(at) == 0:
        return []
    first = int(at[np.flatnonzero(np.diff(at, prepend=-RUN) >= RUN)[-1]])
    level = float(np.median(values[first : first + PAST]))
    first, bound = first + PAST, float(THROWN) * float(highest[first])
    below = np.flatnonzero(values[first:] <= bound)
    last = first + int(below[0]) - 1 if len(below) else len(values) - 1
    ratio = float(np.median(values[first : last + 1])) / max(level, TINY * float(values.max()))
    return [
        Spike(
            first=first,
            last=last,
            peak=first + int(np.argmax(values[first : last + 1])),
            ratio=ratio,
            score=float(LASTING),
            lasting=True,
            open=last >= len(values) - SPAN,
        )
    ]


def _lone(residuals: np.ndarray, scale: np.ndarray, lasting: np.ndarray) -> np.ndarray:
    found = np.zeros(len(residuals), dtype=bool)
    usual = np.sort(residuals[~lasting])
    alone = np.where(lasting, -np.inf, residuals)
    order = np.argpartition(alone, -TESTED)[-TESTED:]
    order = order[np.argsort(alone[order])[::-1]]
    for place, index in enumerate(order):
        rest = usual[: len(usual) - 1 - place]
        if len(rest) < 40:
            break
        limit = exceedance_threshold(rest, float(RATE))
        grown = residuals[index] * scale[index]
        if residuals[index] <= limit or (len(rest) < float(RAMP) and grown < np.log(float(EARLY))):
            break
        found[index] = True
    return found


def _stretches(mask: np.ndarray, join: int) -> list[tuple[int, int]]:
    """First and last index of runs of True, joined over holes of at most `join`."""
    at = np.flatnonzero(mask)
    if len(at) == 0:
        return []
    cuts = np.flatnonzero(np.diff(at) > join + 1)
    return list(zip(at[np.r_[0, cuts + 1]].tolist(), at[np.r_[cuts, len(at) - 1]].tolist(), strict=True))


def _spike(
    residuals: np.ndarray, level: np.ndarray, scale: np.ndarray, first: int, last: int, *, lasting: bool
) -> Spike:
    part = slice(first, last + 1)
    peak = first + int(np.argmax(residuals[part]))
    top = first + int(np.argmax(level[part]))
    return Spike(
        first=first,
        last=last,
        peak=peak,
        ratio=float(np.exp(min(level[top] * scale[top], 700.0))),
        score=float(level[top]),
        lasting=lasting,
        open=last >= len(residuals) - SPAN,
    )


def _moved(spike: Spike, by: int) -> Spike:
    return Spike(
        first=spike.first + by,
        last=spike.last + by,
        peak=spike.peak + by,
        ratio=spike.ratio,
        score=spike.score,
        lasting=spike.lasting,
        open=spike.open,
    )
