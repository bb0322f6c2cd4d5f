"""A curve in the plane that is not a function of its horizontal axis."""

from dataclasses import dataclass

from dynaxx.core.panels import Lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Path(Lines):
    """One path in the plane, cut into lines in the order of time: drawn with equal axes, coloured from first to last.

    The `x` of its lines need not increase.
    """
