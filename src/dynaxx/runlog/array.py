"""LabelledArray: the values of one column, with their steps and, for a vector, the names of its entries."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from dynaxx.core.plotting import draw
from dynaxx.core.records import Column
from dynaxx.errors import BadInput, NotApplicable, UnknownName


class LabelledArray:
    """One column of a run: `np.asarray(array)` are the numbers, of shape (steps,) or (steps, entries).

    A step at which nothing was measured has no row; NaN is a value that was measured.

    Args:
        column: Name, unit, axis.
        steps: Optimizer updates complete at each row, int64 of shape (steps,), increasing.
        load: Makes the values, when they are first asked for.
        view: The `RunView` that it comes from.
        load_entry: Makes the series of one entry without the others.
    """

    def __init__(
        self,
        column: Column,
        steps: np.ndarray,
        load: Callable[[], np.ndarray],
        view: Any,
        load_entry: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        self.column, self.steps = column, steps
        self.steps.flags.writeable = False
        self._load, self._load_entry, self._view = load, load_entry, view
        self._values: np.ndarray | None = None

    @property
    def name(self) -> str:
        """The column's name."""
        return self.column.name

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the entries; empty for one number a step."""
        return () if self.column.axis is None else self.column.axis.labels

    @property
    def shape(self) -> tuple[int, ...]:
        """(steps,) or (steps, entries)."""
        return (len(self.steps),) if self.column.axis is None else (len(self.steps), len(self.labels))

    @property
    def values(self) -> np.ndarray:
        """The numbers, read from the files once; not writeable, as every holder of the column shares them."""
        if self._values is None:
            self._values = self._load()
            self._values.flags.writeable = False
        return self._values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.steps)

    def entry(self, which: str | int) -> "LabelledArray":
        """The series of one entry of the axis; the others are not read.

        Args:
            which: Its label, or its place (negative: from the end).

        Returns:
            An array of shape (steps,), named "column[label]".

        Raises:
            UnknownName: No entry has this label.
            BadInput: The column has no axis, or no such place.
        """
        axis = self.column.axis
        if axis is None:
            raise BadInput(f"{self.name!r} is one number a step: it has no entries. Leave out .entry({which!r}).")
        if isinstance(which, str):
            if which not in axis.labels:
                raise UnknownName(axis.name, which, axis.labels)
            which = axis.labels.index(which)
        if not -len(axis) <= which < len(axis):
            raise BadInput(f"{self.name}.entry({which}): there are {len(axis)} entries.")
        place = which % len(axis)
        column = replace(self.column, name=f"{self.name}[{axis.labels[place]}]", axis=None, reduce="none")
        series = self._load_entry
        if self._values is None and series is not None:
            return LabelledArray(column, self.steps, lambda: series(place), self._view)
        return LabelledArray(column, self.steps, self.values[:, place].copy, self._view)

    def layer(self, name: str) -> "LabelledArray":
        """The series of one layer: `entry`, in the words of the most frequent axis.

        Args:
            name: The layer's name.

        Returns:
            An array of shape (steps,).
        """
        return self.entry(name)

    def at(self, step: int) -> np.ndarray | float:
        """What was measured at one step.

        Args:
            step: Optimizer updates complete.

        Returns:
            A number, or one per entry.

        Raises:
            BadInput: Nothing was measured there.
        """
        row = int(np.searchsorted(self.steps, step))
        if row == len(self.steps) or self.steps[row] != step:
            near = ", ".join(str(s) for s in self.steps[max(0, row - 1) : row + 1]) or "none"
            raise BadInput(f"{self.name}.at({step}): nothing was measured at this step. The nearest: {near}.")
        return float(self.values[row]) if self.column.axis is None else self.values[row]

    def to_pandas(self) -> Any:
        """A pandas Series, or a DataFrame with one column per entry, indexed by step."""
        pandas = optional("pandas")
        index = pandas.Index(self.steps, name="step")
        if self.column.axis is None:
            return pandas.Series(self.values, index=index, name=self.name)
        return pandas.DataFrame(self.values, index=index, columns=pandas.Index(self.labels, name=self.column.axis.name))

    def to_xarray(self) -> Any:
        """An xarray DataArray with the coordinates step and, for a vector, the name of its axis."""
        xarray = optional("xarray")
        coordinates: dict[str, Any] = {"step": self.steps}
        if self.column.axis is not None:
            coordinates[self.column.axis.name] = list(self.labels)
        facts = {"unit": self.column.unit, "about": self.column.about}
        return xarray.DataArray(self.values, dims=tuple(coordinates), coords=coordinates, name=self.name, attrs=facts)

    def plot(self) -> Any:
        """The column as a matplotlib figure."""
        return draw(self._view, self.name)

    def __repr__(self) -> str:
        axis, unit = self.column.axis, "" if self.column.unit == "1" else f" [{self.column.unit}]"
        over = "" if axis is None else f" × {len(axis)} {axis.name}s ({', '.join(_ends(axis.labels))})"
        when = f" {self.steps[0]}–{self.steps[-1]}" if len(self) else ""
        return f"<{self.name}{unit}: {len(self)} steps{when}{over}>"


def _ends(labels: tuple[str, ...]) -> tuple[str, ...]:
    return labels if len(labels) <= 4 else (*labels[:2], "…", labels[-1])


def optional(name: str) -> Any:
    """Import a library that Dynaxx does not install.

    Args:
        name: The library, and the extra that brings it.

    Returns:
        The module.

    Raises:
        NotApplicable: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise NotApplicable(f'{name} is not installed. Run: pip install "dynaxx[{name}]"') from None
