"""Drawing what a run holds: the one arrow upwards, taken only when asked, so that data imports no plotting library."""

import importlib
from typing import Any


def draw(view: Any, name: str) -> Any:
    """Draw a column of a run.

    Args:
        view: A `RunView`.
        name: A column or a derived column of it, or a figure of the report.

    Returns:
        A matplotlib `Figure`.
    """
    return importlib.import_module("dynaxx.figures").draw(view, name)


def picture(panels: Any, *, surface: bool = False) -> Any:
    """Draw panels.

    Args:
        panels: A sequence of `Panel`.
        surface: Draw functions over a plane in three dimensions.

    Returns:
        A matplotlib `Figure`.
    """
    return importlib.import_module("dynaxx.figures").picture(panels, surface=surface)
