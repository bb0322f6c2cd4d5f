"""How detectors read a column: as a track of numbers, with clear words where it cannot be read."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dynaxx.core.findings import Log
from dynaxx.errors import NotApplicable

LOSS = "loss|train_loss"
"""The training loss under the names that loops give it."""
VALIDATION = "val_loss|eval_loss|validation_loss"
"""The loss on held-out data under the names that loops give it."""
GAP = 20.0
"""A hole in a column is a gap where it is so many times its usual spacing (median): evaluations and logging every n
steps vary by a few times, a lost stretch by far more."""
GAP_SHARE = 0.1
"""And where it takes at least this share of the column's steps: what is missing could then hold an incident."""
ROWS = 1024
"""Rows of a column that are looked at: what persists for a thousandth of a run is seen, and 10 000 steps × 30 layers
take under 5 ms."""
QUIETLY = np.errstate(all="ignore")
"""For `detect`: what is not finite, or overflows on the way, fails every comparison, and needs no warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """The numbers of one column.

    Args:
        name: The column.
        steps: Steps of the rows, rising, shape (rows,).
        values: float64 of shape (rows,) or (rows, entries).
        labels: Names of the entries; empty for one number a step.
    """

    name: str
    steps: np.ndarray
    values: np.ndarray
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.steps)

    def between(self, first: float, last: float) -> "Track":
        """The rows of steps first … last, both included."""
        start, stop = np.searchsorted(self.steps, first, "left"), np.searchsorted(self.steps, last, "right")
        return self.rows(slice(int(start), int(stop)))

    def rows(self, which: Any) -> "Track":
        """Some rows: a slice or a mask."""
        return Track(name=self.name, steps=self.steps[which], values=self.values[which], labels=self.labels)

    @property
    def finite(self) -> "Track":
        """The rows in which every entry is finite."""
        good = np.isfinite(self.values)
        good = good if good.ndim == 1 else good.all(axis=1)
        return self if good.all() else self.rows(good)

    def total(self) -> "Track":
        """The L2 norm over the entries, row by row; a column without entries as it is."""
        if self.values.ndim == 1:
            return self
        return Track(name=self.name, steps=self.steps, values=np.sqrt(np.einsum("ij,ij->i", self.values, self.values)))

    def largest(self) -> "Track":
        """The largest entry of each row; a column without entries as it is."""
        if self.values.ndim == 1:
            return self
        return Track(name=self.name, steps=self.steps, values=self.values.max(axis=1, initial=-np.inf))


def optional(run: Log, names: str) -> Track | None:
    """A column, if the log has it.

    Args:
        run: The log.
        names: Its name, or several with "|" between them, the preferred first.

    Returns:
        The track; None where there is none or it has no row.

    Raises:
        NotApplicable: Its steps go back: two runs in one log.
    """
    for name in names.split("|"):
        if name not in run.columns:
            continue
        series = run[name]
        if len(series.steps) == 0:
            continue
        back = np.flatnonzero(np.diff(series.steps) <= 0)
        if len(back):
            raise NotApplicable(
                f"the steps of {name} go back from {series.steps[back[0]]} to {series.steps[back[0] + 1]}: "
                "two runs in one log. Split it"
            )
        values = np.asarray(series.values, dtype=np.float64)
        return Track(name=name, steps=np.asarray(series.steps), values=values, labels=tuple(series.labels))
    return None


def track(run: Log, names: str, least: int = 1) -> Track:
    """A column that a detector cannot do without.

    Args:
        run: The log.
        names: Its name, or several with "|" between them, the preferred first.
        least: The smallest number of rows to draw a conclusion from.

    Returns:
        The track.

    Raises:
        NotApplicable: It is missing, too short, or its steps go back.
    """
    found = optional(run, names)
    if found is None:
        raise NotApplicable(f"needs the column {names.replace('|', ' or ')}, which has no row")
    if len(found) < least:
        raise NotApplicable(f"{found.name} has {len(found)} rows; at least {least} are needed to tell")
    return found


def rows(run: Log, name: str, least: int = 1) -> Track:
    """A column, thinned evenly where its rows are many.

    Thinning keeps the steps that are multiples of a power of two, so that a longer log shows the same rows of its past.

    Args:
        run: The log.
        name: The column.
        least: Rows that the detector needs.

    Returns:
        The rows; `NotApplicable` is raised as by `track`.
    """
    found = track(run, name, least)
    if len(found) <= 2 * ROWS:
        return found
    stride = 1 << int(np.log2(len(found) / ROWS))
    kept = found.rows(found.steps % stride == 0)
    return kept if len(kept) >= max(least, ROWS // 2) else found


def unbroken(run: Log, names: str, least: int) -> Track:
    """The finite values of a column since its last gap.

    Args:
        run: The log.
        names: As `track` takes them; a column of one number a step.
        least: The smallest number of rows to draw a conclusion from.

    Returns:
        The track; values that are not finite are left out, `non_finite` finds those.

    Raises:
        NotApplicable: It is missing or too short, or a gap leaves too little.
    """
    found = track(run, names, least)
    if found.values.ndim != 1:
        raise NotApplicable(f"{found.name} is a vector over {len(found.labels)} entries where one number is needed")
    good = found.finite
    if len(good) < least:
        raise NotApplicable(f"{len(found) - len(good)} of {len(found)} rows of {found.name} are not finite")
    spacing = np.diff(good.steps)
    wide = (spacing > GAP * np.median(spacing)) & (spacing > GAP_SHARE * (good.steps[-1] - good.steps[0]))
    holes = np.flatnonzero(wide)
    if len(holes) == 0:
        return good
    last = int(holes[-1])
    rest = good.rows(slice(last + 1, None))
    if len(rest) < least:
        raise NotApplicable(
            f"{good.name} has no rows between the steps {good.steps[last]} and {good.steps[last + 1]}, "
            f"and {len(rest)} since; at least {least} are needed to tell"
        )
    return rest


def matching(one: Track, other: Track) -> tuple[np.ndarray, np.ndarray]:
    """The places of the steps that two columns share.

    Args:
        one: A column.
        other: Another.

    Returns:
        Places in the one and in the other, in order.
    """
    _, here, there = np.intersect1d(one.steps, other.steps, assume_unique=True, return_indices=True)
    return here, there


def end_of(run: Log) -> int:
    """The last step of the log.

    Args:
        run: The log.

    Returns:
        The step; 0 where there is none.
    """
    return int(run.steps[-1]) if len(run.steps) else 0


def fallen(run: Log) -> float:
    """By what share of its start the loss has fallen: 1 − median of the last tenth / median of the first steps.

    Args:
        run: The log.

    Returns:
        1: to zero; 0: not at all; negative: risen; NaN where the log cannot tell.
    """
    if "loss" not in run.columns:
        return float("nan")
    loss = rows(run, "loss").values
    loss = loss[np.isfinite(loss)]
    if len(loss) < 10:
        return float("nan")
    first, last = float(np.median(loss[: max(3, len(loss) // 100)])), float(np.median(loss[-max(5, len(loss) // 10) :]))
    return (first - last) / abs(first) if first else float("nan")
