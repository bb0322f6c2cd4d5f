"""Which rows of a run's segments stand, and one column's rows out of all of them.

After a resume the latest attempt of each step counts: an attempt covers the steps after its start up to its largest
logged one, or all of them where the attempt before was left by a rollback. A row stands if no later attempt covers its
step.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dynaxx.core.records import Axis, Column
from dynaxx.runlog.problems import Problem
from dynaxx.runlog.segments import Batch, Segment

_EVERY = np.iinfo(np.int64).max


class Standing:
    """Which rows of which batches stand.

    Args:
        segments: The run's segments, in order.
        starts: Attempt → optimizer updates complete when it began; where it is missing, its first row tells.
        returns: Attempts that began by a rollback.
    """

    def __init__(
        self, segments: Sequence[Segment], starts: dict[int, int], returns: AbstractSet[int] = frozenset()
    ) -> None:
        self.problems: list[Problem] = []
        self.batches: list[Batch] = []
        for segment in segments:
            for batch in segment.batches:
                if batch.steps is None:
                    self.problems.append(batch.problem(0))
                else:
                    self.batches.append(batch)
        self._cover = _cover(self.batches, starts, returns)
        self._newest = self._cover[-1, 0] if len(self._cover) else 0

    def rows(self, batch: Batch) -> np.ndarray | None:
        """The rows of a batch that stand.

        Args:
            batch: One of `batches`.

        Returns:
            Their mask, bool of shape (rows,); None: all.
        """
        if batch.segment.attempt == self._newest:
            return None
        attempt, first, last = self._cover.T
        low, high = batch.span
        over = self._cover[(attempt > batch.segment.attempt) & (first <= high) & (last >= low)]
        if not len(over):
            return None
        assert batch.steps is not None
        steps = batch.steps[:, None]
        covered = (steps >= over[:, 1]) & (steps <= over[:, 2])
        return np.logical_not(covered.any(axis=1))

    @cached_property
    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Every step that has a row, in order, and the attempt that it comes from; both int64 of shape (steps,)."""
        found: list[np.ndarray] = []
        attempts: list[np.ndarray] = []
        for batch in self.batches:
            assert batch.steps is not None
            mask = self.rows(batch)
            steps = batch.steps if mask is None else batch.steps[mask]
            found.append(steps)
            attempts.append(np.full(len(steps), batch.segment.attempt))
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        steps, owners = np.concatenate(found), np.concatenate(attempts)
        order = np.argsort(steps, kind="stable")
        order = order[_last_of_each(steps[order])]
        steps, owners = steps[order], owners[order]
        steps.flags.writeable = owners.flags.writeable = False
        return steps, owners


def _cover(batches: Sequence[Batch], starts: dict[int, int], returns: AbstractSet[int]) -> np.ndarray:
    """Attempt, first and last step that it covers, int64 of shape (attempts, 3), in order."""
    spans: dict[int, tuple[int, int]] = {n: (starts[n], _EVERY) for n in returns}
    for batch in batches:
        low, high = batch.span
        before = spans.get(batch.segment.attempt, (low, high))
        spans[batch.segment.attempt] = (min(low, before[0]), max(high, before[1]))
    rows: list[tuple[int, int, int]] = []
    for attempt, (low, high) in sorted(spans.items()):
        start = starts.get(attempt)
        # Step 0, before any update, is covered by an attempt that began there, and by no later one.
        rows.append((attempt, low if start is None else start + 1 if start else 0, high))
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


@dataclass(frozen=True, slots=True)
class _Piece:
    """The rows of one batch that a column takes: values as they lie in the file, the mask of rows, and its entries."""

    values: np.ndarray
    mask: np.ndarray | None
    places: np.ndarray | None

    def matrix(self, entries: int) -> np.ndarray:
        rows = self.values if self.mask is None else self.values[self.mask]
        if self.places is None:
            return rows
        wide = np.full((len(rows), entries), np.nan, dtype=rows.dtype)
        wide[:, self.places] = rows
        return wide

    def entry(self, place: int) -> np.ndarray:
        if self.places is not None:
            found = np.flatnonzero(self.places == place)
            if not len(found):
                rows = len(self.values) if self.mask is None else np.count_nonzero(self.mask)
                return np.full(rows, np.nan, dtype=self.values.dtype)
            place = int(found[0])
        series = self.values[:, place]
        return series if self.mask is None else series[self.mask]


class Gathered:
    """One column's rows that stand, were measured and match their checksum; values are copied out when asked for.

    Args:
        column: The column, with the entries of all its segments.
        standing: Which rows stand.
    """

    def __init__(self, column: Column, standing: Standing) -> None:
        self.column = column
        self.problems: list[Problem] = []
        self._pieces: list[_Piece] = []
        steps: list[np.ndarray] = []
        places: dict[int, np.ndarray | None] = {}
        for batch in standing.batches:
            field, kept = batch.segment.fields.get(column.name, (None, column))
            if field is None or (kept.axis is None) != (column.axis is None):
                continue
            found = batch.read(field)
            if found is None:
                self.problems.append(batch.problem(field))
                continue
            values, valid = found
            mask = _both(standing.rows(batch), valid)
            key = id(batch.segment)
            if key not in places:
                places[key] = _places(kept.axis, column.axis)
            self._pieces.append(_Piece(values, mask, places[key]))
            assert batch.steps is not None
            steps.append(batch.steps if mask is None else batch.steps[mask])
        together = np.concatenate(steps) if steps else np.empty(0, np.int64)
        self._order: np.ndarray | None = None
        if len(together) > 1 and not np.all(together[1:] > together[:-1]):
            order = np.argsort(together, kind="stable")
            self._order = order[_last_of_each(together[order])]
            together = together[self._order]
        self.steps = together

    def values(self) -> np.ndarray:
        """All values, of shape (steps,) or (steps, entries); NaN also where an entry did not exist yet."""
        axis = self.column.axis
        shape = (0,) if axis is None else (0, len(axis))
        parts = [piece.matrix(0 if axis is None else len(axis)) for piece in self._pieces]
        return self._ordered(parts, np.empty(shape, self.column.dtype))

    def entry(self, place: int) -> np.ndarray:
        """The values of one entry, without touching the others.

        Args:
            place: Which entry of the column's axis.

        Returns:
            Shape (steps,).
        """
        return self._ordered([piece.entry(place) for piece in self._pieces], np.empty(0, self.column.dtype))

    def _ordered(self, parts: list[np.ndarray], empty: np.ndarray) -> np.ndarray:
        together = np.concatenate(parts) if parts else empty
        return together if self._order is None else together[self._order]


def columns(segments: Sequence[Segment]) -> tuple[dict[str, Column], list[Problem]]:
    """The columns of a run: as the latest segment describes them, over the entries of all.

    Args:
        segments: The run's segments, in order.

    Returns:
        Name → column, and the columns that were once numbers and once vectors: only the latest kind is shown.
    """
    found: dict[str, Column] = {}
    problems: list[Problem] = []
    for segment in segments:
        for name, (place, column) in segment.fields.items():
            if place == 1:  # the clock, which every segment has
                continue
            before = found.get(name)
            if before is not None and (before.axis is None) != (column.axis is None):
                what = f"{name!r} was {'a number' if before.axis is None else 'a vector'} in earlier segments"
                problems.append(Problem(file=segment.file, what=what, lost=f"the earlier rows of {name!r}"))
            elif before is not None and before != column:
                column = replace(column, axis=_union(before.axis, column.axis), dtype=_wider(before, column))
            found[name] = column
    return found, problems


def _wider(one: Column, other: Column) -> str:
    return "float64" if "float64" in (one.dtype, other.dtype) else "float32"


def _union(before: Axis | None, axis: Axis | None) -> Axis | None:
    if before is None or axis is None or before.labels == axis.labels:
        return axis
    known = set(before.labels)
    new = [place for place, label in enumerate(axis.labels) if label not in known]
    labels = before.labels + tuple(axis.labels[place] for place in new)
    weights: tuple[float, ...] = ()
    if before.weights and axis.weights:
        weights = before.weights + tuple(axis.weights[place] for place in new)
    return Axis(name=axis.name, labels=labels, weights=weights)


def _places(axis: Axis | None, whole: Axis | None) -> np.ndarray | None:
    """Where a segment's entries stand among all; None: they are all, in order."""
    if axis is None or whole is None or axis.labels == whole.labels:
        return None
    place = {label: n for n, label in enumerate(whole.labels)}
    return np.array([place[label] for label in axis.labels], dtype=np.int64)


def _both(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _last_of_each(ordered: np.ndarray) -> np.ndarray:
    """Mask of the last of equal neighbours."""
    last = np.ones(len(ordered), dtype=bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    return last
