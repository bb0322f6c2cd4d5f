"""A log as it stood at an earlier step, or its last stretch: to replay decisions, and to diagnose at a bounded cost."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dynaxx.core.findings import Log
from dynaxx.core.records import Column
from dynaxx.runlog.array import LabelledArray
from dynaxx.runlog.events import standing


class ClippedView:
    """The steps first … last of a log, with the events up to the last one.

    Args:
        view: The log.
        first: The first step that is seen.
        last: The last one; None: all that there are.
    """

    def __init__(self, view: Log, first: int = 0, last: int | None = None) -> None:
        self._view, self._first, self._last = view, first, last
        self._arrays: dict[str, LabelledArray] = {}
        self._columns: dict[str, Column] | None = None
        self._events: list[dict[str, Any]] | None = None

    @property
    def columns(self) -> Mapping[str, Column]:
        """The columns of the whole log that have a row here."""
        if self._columns is None:  # asked for dozens of times in a diagnosis
            whole: Mapping[str, Column] = self._view.columns
            clipped = self._last is not None or self._first > 0
            self._columns = {name: whole[name] for name in whole if not clipped or len(self[name].steps)}
        return self._columns

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What was known when the run began."""
        return self._view.manifest

    @property
    def steps(self) -> np.ndarray:
        """Every step that has a row here."""
        return self._view.steps[self._rows(self._view.steps)]

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The events up to the last step, in order, without those of attempts that were overtaken.

        Args:
            kind: Only events of this kind; None: all.

        Returns:
            One dict per event.
        """
        if self._events is None:
            events, last = standing(self._view.events()), self._last
            self._events = [event for event in events if last is None or event.get("step", 0) <= last]
        return [event for event in self._events if kind is None or event.get("kind") == kind]

    def __getitem__(self, name: str) -> LabelledArray:
        if name not in self._arrays:
            whole = self._view[name]
            rows = self._rows(whole.steps)
            self._arrays[name] = LabelledArray(whole.column, whole.steps[rows], lambda: whole.values[rows], self)
        return self._arrays[name]

    def _rows(self, steps: np.ndarray) -> slice:
        end = len(steps) if self._last is None else int(np.searchsorted(steps, self._last, side="right"))
        return slice(int(np.searchsorted(steps, self._first, side="left")), end)
