"""Reading columns for a figure: what a run lacks is None, never an exception."""

from collections.abc import Iterable

import numpy as np

from dynaxx.core.panels import Scale
from dynaxx.errors import NotApplicable, UnknownName
from dynaxx.runlog import LabelledArray, RunView

DECADES = 30.0
"""Values whose 98th percentile is more than this many times their 2nd are drawn on a log scale: about 1.5 decades,
beyond which a linear axis shows the smaller half as zero."""


def read(view: RunView, name: str) -> LabelledArray | None:
    """A column, or None where the run has none of that name, nothing in it, or no such reduction of it.

    Args:
        view: The run.
        name: The column's name.

    Returns:
        The labelled array with at least one step, or None.
    """
    try:
        array = view[name]
    except (UnknownName, NotApplicable):
        return None
    return array if len(array) else None


def read_some(view: RunView, names: Iterable[str], reason: str) -> dict[str, LabelledArray]:
    """Those columns of a list that the run has.

    Args:
        view: The run.
        names: Names of columns.
        reason: Why there is no figure where the run has none of them.

    Returns:
        Name → labelled array, in the order of the names.

    Raises:
        NotApplicable: The run has none.
    """
    found = {name: array for name in names if (array := read(view, name)) is not None}
    if not found:
        raise NotApplicable(reason)
    return found


def named(words: str, unit: str) -> str:
    """Words with their unit in brackets; ratios ("1") have none.

    Args:
        words: What is shown.
        unit: The column's unit.

    Returns:
        The label.

    Example:
        >>> named("step time", "s"), named("update ratio", "1")
        ('step time (s)', 'update ratio')
    """
    return words if unit in ("", "1") else f"{words} ({unit})"


def sentence(about: str) -> str:
    """What a column says of itself, as a sentence.

    Args:
        about: A phrase.

    Returns:
        The phrase with a capital and a full stop.

    Example:
        >>> sentence("passes over the data"), sentence("")
        ('Passes over the data.', '')
    """
    return about[:1].upper() + about[1:] + ("" if about[-1:] in ("", ".") else ".")


def scale_for(*values: np.ndarray) -> Scale:
    """Whether to draw values on a log scale: where they are positive and span decades (`DECADES`).

    Args:
        values: Arrays of any shape; non-finite entries are left out.

    Returns:
        The scale.

    Example:
        >>> scale_for(np.array([1e-4, 1e-2, 1.0])), scale_for(np.array([1.0, 2.0])), scale_for(np.array([-1.0, 1e6]))
        ('log', 'linear', 'linear')
    """
    flat = np.concatenate([np.ravel(v) for v in values])
    flat = flat[np.isfinite(flat)]
    if flat.size == 0 or flat.min() <= 0:
        return "linear"
    low, high = np.percentile(flat, [2, 98])
    return "log" if high > DECADES * low else "linear"
