"""A task whose batches are not alike: where its loss fails, the batches that differ are named."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

from dynaxx.core.task import Split, Task
from dynaxx.errors import BadInput, DynaxxError

LOOKED_AT = 64
"""Batches of each split that are compared: enough to meet what some of them lack, few enough to read in a moment."""


@contextmanager
def explained(task: Task) -> Generator[None]:
    """An error of the task's own within is told as bad input where batches differ in keys or in length, else passed on.

    A loss may well take batches of several kinds, so nothing is compared before it has failed.

    Args:
        task: Whose loss may fail within.

    Raises:
        BadInput: The loss failed, and the task's batches differ.
    """
    try:
        yield
    except DynaxxError:
        raise
    except Exception as error:
        found = _difference(task)
        if found is None:
            raise
        name = type(task).__name__
        raise BadInput(
            f"{name}.loss failed ({type(error).__name__}: {error}), and the batches of {name} are not alike: {found}. "
            "Give every batch the same keys."
        ) from error


def _difference(task: Task) -> str | None:
    """The first batch that is unlike the first one, in words."""
    splits: tuple[Split, ...] = ("train", "validation")
    first = ""
    for split in splits:
        for i, batch in enumerate(islice(task.batches(split, 0), LOOKED_AT)):
            shape = _shape(batch)
            if shape != (first := first or shape):
                return f"the first has {first}, {split} batch {i} has {shape}"
    return None


def _shape(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"keys {', '.join(sorted(map(str, batch)))}"  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return f"{len(batch)} parts" if isinstance(batch, list | tuple) else type(batch).__name__  # pyright: ignore[reportUnknownArgumentType]
