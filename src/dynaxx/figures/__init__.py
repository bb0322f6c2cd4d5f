"""Pictures of a run: pure functions from its columns to panels, one figure per file; and their drawing."""

from dynaxx.figures._data import FigureData, data, of_panels
from dynaxx.figures._draw import draw, picture
from dynaxx.figures._entries import entries

__all__ = ["FigureData", "data", "draw", "entries", "of_panels", "picture"]
