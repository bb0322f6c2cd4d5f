"""What every log has in common: columns by name, and those that are derived from them on reading."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dynaxx.core.records import Column
from dynaxx.errors import NotApplicable, UnknownName
from dynaxx.runlog.array import LabelledArray
from dynaxx.runlog.derive import derivable, smoothed, statistic
from dynaxx.runlog.schema import CLOCK


class Columnar(ABC):
    """Columns of a log. A stored column of a name comes before a derived one.

    A column over layers (or another axis) also gives `.total` (its declared reduction), `.max`, `.min`, `.median`,
    `.q10`, `.q90` and `.early_to_late`; one number a step gives `.smoothed`; `name[label]` is one entry.
    """

    columns: Mapping[str, Column]
    """The stored columns by name."""
    manifest: Mapping[str, Any]
    """What was known when the run began."""

    @property
    @abstractmethod
    def steps(self) -> np.ndarray:
        """Every step that has a row, int64 of shape (steps,), increasing."""

    @abstractmethod
    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The events in the order they were written.

        Args:
            kind: Only events of this kind; None: all.

        Returns:
            One dict per event, with kind, step and what the kind says.
        """

    @abstractmethod
    def stored(self, column: Column) -> LabelledArray:
        """Read a stored column.

        Args:
            column: One of `columns`, or the clock.

        Returns:
            Its values.
        """

    def __getitem__(self, name: str) -> LabelledArray:
        column = CLOCK if name == CLOCK.name else self.columns.get(name)
        return self._derived(name) if column is None else self.stored(column)

    def _derived(self, name: str) -> LabelledArray:
        base, _, suffix = name.rpartition(".")
        if name.endswith("]"):
            base, _, label = name[:-1].partition("[")
            if base in self.columns:
                return self[base].entry(label)
        elif self.is_number(base) and suffix == "smoothed":
            source = self[base]
            column = replace(
                source.column, name=name, dtype="float64", about=f"{source.column.about} Smoothed.".strip()
            )
            return LabelledArray(column, source.steps, lambda: smoothed(source.values), self)
        elif base in self.columns and suffix in derivable(self.columns[base]):
            source = self[base]
            column = replace(source.column, name=name, axis=None, reduce="none", dtype="float64")
            return LabelledArray(column, source.steps, lambda: statistic(suffix, source.values, source.column), self)
        elif suffix == "total" and base in self.columns and self.columns[base].axis is not None:
            raise NotApplicable(f"{name}: the entries of {base!r} do not collapse to one number (reduce='none').")
        more = [f"{base}.{suffix}" for suffix in derivable(self.columns[base])] if base in self.columns else []
        raise UnknownName("column", name, [*self.columns, CLOCK.name, *more])

    def is_number(self, name: str) -> bool:
        """Whether a name stands for one number a step: stored, derived or an entry.

        Args:
            name: Of a column.

        Returns:
            Whether it does.
        """
        if name in self.columns:
            return self.columns[name].axis is None
        if name.endswith("]"):
            base, _, label = name[:-1].partition("[")
            axis = self.columns[base].axis if base in self.columns else None
            return axis is not None and label in axis.labels
        base, _, suffix = name.rpartition(".")
        return base in self.columns and suffix in derivable(self.columns[base])
