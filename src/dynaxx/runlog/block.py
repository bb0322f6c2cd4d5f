"""A block of rows on its way to disk: checked and copied in the caller's thread."""

import re
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dynaxx.core.records import Column
from dynaxx.errors import BadInput
from dynaxx.runlog.frames import MARK

_STREAM = re.compile(r"[A-Za-z0-9_.]+")


class Block(NamedTuple):
    """Consecutive rows of one stream, owned by the log.

    Args:
        steps: int64 of shape (rows,).
        walls: float64 of shape (rows,), UTC seconds.
        columns: The columns.
        values: Per column, shape (rows,) or (rows, entries).
        valid: Per column, the mask of measured rows or None.
    """

    steps: np.ndarray
    walls: np.ndarray
    columns: tuple[Column, ...]
    values: Sequence[np.ndarray]
    valid: Sequence[np.ndarray | None]

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return self.steps.nbytes + self.walls.nbytes + sum(values.nbytes for values in self.values)


def block_of(
    stream: str,
    steps: np.ndarray | Sequence[int],
    columns: Sequence[tuple[Column, np.ndarray, np.ndarray | None]],
    walls: np.ndarray | Sequence[float] | None,
) -> Block:
    """Check and copy what `LogWriter.rows` was given; its arguments, in its words.

    Args:
        stream: The stream's name.
        steps: Shape (rows,).
        columns: Column, values of shape (rows,) or (rows, entries), mask of shape (rows,) or None.
        walls: UTC seconds, shape (rows,); None: now.

    Returns:
        The block.

    Raises:
        BadInput: A name or a shape is wrong.
    """
    if not _STREAM.fullmatch(stream):
        raise BadInput(f"LogWriter.rows({stream!r}): a stream is named by letters, digits, '_' and '.'.")
    names = [column.name for column, _, _ in columns]
    if len(set(names)) < len(names) or {"step", "wall", ""} & set(names):
        raise BadInput(f"LogWriter.rows({stream!r}): columns need different names, none 'step' or 'wall'. Got {names}.")
    count = np.array(steps, dtype=np.int64)
    times = np.full(len(count), time.time()) if walls is None else np.array(walls, dtype=np.float64)
    if count.ndim != 1 or times.shape != count.shape:
        raise BadInput(f"LogWriter.rows({stream!r}): steps {count.shape} and walls {times.shape} must be (rows,).")
    values = [_values(column, given, len(count)) for column, given, _ in columns]
    masks = [_mask(column, given, len(count)) for column, _, given in columns]
    return Block(count, times, tuple(column for column, _, _ in columns), values, masks)


def _values(column: Column, given: np.ndarray, rows: int) -> np.ndarray:
    if MARK in column.name or not column.name.isprintable():
        raise BadInput(f"A column's name must be printable. Got {column.name!r}.")
    shape = (rows,) if column.axis is None else (rows, len(column.axis))
    with np.errstate(over="ignore"):  # beyond float32 is inf, and inf is worth logging
        values = np.array(given, dtype=column.dtype, order="C")
    if values.shape != shape or 0 in shape[1:]:
        raise BadInput(f"LogWriter.rows: {column.name!r} must have shape {shape}. Got {values.shape}.")
    return values


def _mask(column: Column, given: np.ndarray | None, rows: int) -> np.ndarray | None:
    if given is None:
        return None
    mask = np.array(given, dtype=np.bool_)
    if mask.shape != (rows,):
        raise BadInput(f"LogWriter.rows: the mask of {column.name!r} must have shape ({rows},). Got {mask.shape}.")
    return mask
