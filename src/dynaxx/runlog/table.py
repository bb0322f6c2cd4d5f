"""A log that is held in memory: what another tool wrote, or what a test makes up."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dynaxx.core.records import Axis, Column
from dynaxx.errors import BadInput
from dynaxx.runlog.array import LabelledArray
from dynaxx.runlog.columnar import Columnar


class Table(Columnar):
    """Columns given as arrays.

    Args:
        series: Name → (steps, values): steps increasing, values of shape (steps,) or (steps, entries).
        columns: What is known of some of the columns; the others are plain numbers.
        manifest: What was known when the run began.
        events: With kind and step, in order.
        name: What to call the log.

    Raises:
        BadInput: Steps do not increase, or lengths differ.

    Example:
        >>> log = Table({"loss": ([1, 2], [2.0, 1.0])})
        >>> log["loss"].values
        array([2., 1.])
    """

    def __init__(
        self,
        series: Mapping[str, tuple[Any, Any]],
        *,
        columns: Mapping[str, Column] | None = None,
        manifest: Mapping[str, Any] | None = None,
        events: Sequence[Mapping[str, Any]] = (),
        name: str = "table",
    ) -> None:
        self.name = name
        self.manifest = dict(manifest or {})
        self._events = [dict(event) for event in events]
        self._series: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.columns = {}
        for key, (steps, values) in series.items():
            at, numbers = np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)
            if at.ndim != 1 or len(at) != len(numbers) or (np.diff(at) <= 0).any():
                raise BadInput(f"Table({key!r}): steps must increase and be as many as the values, {len(numbers)}.")
            known = (columns or {}).get(key, Column(name=key, dtype="float64"))
            if known.axis is None and numbers.ndim == 2:
                known = replace(known, axis=Axis(name="entry", labels=tuple(map(str, range(numbers.shape[1])))))
            self.columns[key] = known
            self._series[key] = (at, numbers)

    @property
    def steps(self) -> np.ndarray:
        """Every step that has a row in some column."""
        rows = [steps for steps, _ in self._series.values()]
        return np.unique(np.concatenate(rows)) if rows else np.empty(0, dtype=np.int64)

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The events in order.

        Args:
            kind: Only events of this kind; None: all.

        Returns:
            One dict per event.
        """
        return [event for event in self._events if kind is None or event.get("kind") == kind]

    def stored(self, column: Column) -> LabelledArray:
        """A column as it was given."""
        steps, values = self._series[column.name]
        return LabelledArray(column, steps.copy(), values.copy, self)

    def __repr__(self) -> str:
        return f"<Table {self.name!r}: {len(self.steps)} steps, {len(self.columns)} columns>"
