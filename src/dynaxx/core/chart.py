"""What a probe returns: numbers with their uncertainty and their price, and panels that show them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dynaxx.core.panels import Field, HeatMap, Line, Lines, Panel, Table
from dynaxx.core.plotting import picture
from dynaxx.core.records import Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One number of a chart.

    Args:
        value: The number.
        error: Its standard error, or a bound where `bound` is True; None: exact but for rounding.
        bound: Whether `error` bounds |value − truth| instead of being a standard error.
        unit: Its unit; "1" for a ratio.
        about: What it is, in a few words.
    """

    value: float
    error: float | None = None
    bound: bool = False
    unit: str = "1"
    about: str = ""

    def __str__(self) -> str:
        """The number with six digits at most, those beyond the second of its error left out."""
        if self.error is None:
            return f"{self.value:.6g}"
        digits = 6
        if 0 < self.error < math.inf and 0 < abs(self.value) < math.inf:
            size, doubt = (math.floor(math.log10(abs(number))) for number in (self.value, self.error))
            digits = min(6, max(1, size + 1, size - doubt + 2))
        return f"{self.value:.{digits}g}{' ≤±' if self.bound else ' ± '}{self.error:.2g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What a probe found at a point of parameter space.

    Args:
        probe: The probe's name.
        title: What was looked at, in a line: model, loss, examples, parameters.
        values: Headline numbers by name.
        arrays: Further results by name: eigenvalues, densities.
        panels: How it is drawn.
        cost: What it took.
        notes: What a reader must know: conditions that were not met, choices that were made.
    """

    probe: str
    title: str
    values: Mapping[str, Estimate]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    panels: Sequence[Panel] = ()
    cost: Cost = field(default_factory=Cost)
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> float:
        """The value of that name."""
        return self.values[name].value

    def plot(self, *, surface: bool = False) -> Any:
        """The chart as a matplotlib figure.

        Args:
            surface: Draw functions over a plane in three dimensions instead of as contours.
        """
        return picture(self.panels, surface=surface)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; None stands for what is not finite."""
        return {
            "probe": self.probe,
            "title": self.title,
            "values": {name: _plain(asdict(value)) for name, value in self.values.items()},
            "arrays": {name: _plain(np.asarray(array)) for name, array in self.arrays.items()},
            "panels": [{"kind": type(panel).__name__, **_plain(asdict(panel))} for panel in self.panels],
            "cost": asdict(self.cost),
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Chart":
        """A chart from what `to_dict` gave.

        Args:
            plain: Its plain data, through JSON or not.

        Returns:
            The chart.
        """
        return cls(
            probe=plain["probe"],
            title=plain["title"],
            values={name: _estimate(value) for name, value in plain["values"].items()},
            arrays={name: _floats(array) for name, array in plain["arrays"].items()},
            panels=tuple(_panel(panel) for panel in plain["panels"]),
            cost=Cost(**plain["cost"]),
            notes=tuple(plain["notes"]),
        )

    def __str__(self) -> str:
        width = max((len(name) for name in self.values), default=0)
        rows = [f"  {name:<{width}}  {value}  {value.about}".rstrip() for name, value in self.values.items()]
        return "\n".join([f"{self.probe}: {self.title}", *rows, *(f"  note: {note}" for note in self.notes)])

    def _repr_png_(self) -> bytes:
        """Shows itself in a notebook."""
        from io import BytesIO

        out = BytesIO()
        self.plot().savefig(out, format="png", dpi=110)
        return out.getvalue()


def _estimate(plain: Mapping[str, Any]) -> Estimate:
    kept: dict[str, Any] = dict(plain)
    kept["value"] = math.nan if plain["value"] is None else plain["value"]
    return Estimate(**kept)


def _plain(value: Any) -> Any:
    """Plain data that strict JSON holds: arrays as lists, None for what is not finite."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _panel(plain: Mapping[str, Any]) -> Panel:
    rest: dict[str, Any] = {key: value for key, value in plain.items() if key != "kind"}
    match plain["kind"]:
        case "HeatMap":
            rest |= {"x": _floats(rest["x"]), "values": _floats(rest["values"]), "rows": tuple(rest["rows"])}
            return HeatMap(**rest)
        case "Table":
            rest |= {"header": tuple(rest["header"]), "rows": tuple(map(tuple, rest["rows"]))}
            return Table(**rest)
        case "Field":
            rest |= {name: _floats(rest[name]) for name in ("x", "y", "values")}
            rest["paths"] = tuple(map(_line, rest["paths"]))
            return Field(**rest)
        case _:
            rest["lines"] = tuple(map(_line, rest["lines"]))
            rest["spans"] = {name: tuple(ends) for name, ends in rest.get("spans", {}).items()}
            return Lines(**rest)


def _line(plain: Mapping[str, Any]) -> Line:
    return Line(label=plain["label"], style=plain["style"], x=_floats(plain["x"]), y=_floats(plain["y"]))


def _floats(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)
