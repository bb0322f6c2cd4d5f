"""Holds measurements on their device until a block of steps is full, then hands them to the writer as arrays."""

import threading
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dynaxx.core.records import Column, Measurement
from dynaxx.errors import BadInput, DynaxxWarning
from dynaxx.runlog.writer import LogWriter

BLOCK = 1024
"""Steps between drains: one transfer of a few stacked tensors per block instead of one wait per step."""
SECONDS = 1.0
"""A live view should not be older than this, so slow steps are drained by time."""
SHARE = 0.002
"""Drains that take more than this share of the time between them come more rarely, at most `SLOWEST` seconds apart."""
SLOWEST = 5.0

_USER = "log"


@dataclass(slots=True)
class _Pending:
    """The undrained values of one column: `rows[i]` is the position in the stream's `steps` that `values[i]` is for."""

    column: Column
    fold: tuple[int, ...] | None
    rows: list[int] = field(default_factory=list[int])
    values: list[Any] = field(default_factory=list[Any])


@dataclass(slots=True)
class _Stream:
    steps: list[int] = field(default_factory=list[int])
    walls: list[float] = field(default_factory=list[float])
    columns: dict[str, _Pending] = field(default_factory=dict[str, _Pending])


@dataclass(slots=True)
class _Block:
    """What one drain took from a stream: values on the host, or on their way there."""

    stream: str
    steps: np.ndarray
    walls: np.ndarray
    columns: list[tuple[_Pending, torch.Tensor | np.ndarray]]
    ready: Callable[[], None]


class Recorder:
    """Collects measurements and the user's values by stream and step.

    On an accelerator a block is copied without waiting and handed on at the next drain, one window late.

    Args:
        writer: Where blocks go; None: nowhere (ranks other than the first).
        block: Steps between drains.
    """

    def __init__(self, writer: LogWriter | None, *, block: int = BLOCK) -> None:
        self._writer = writer
        self._block = block
        self._streams: dict[str, _Stream] = {}
        self._user: dict[str, list[tuple[int, Any]]] = {}
        self._flying: list[_Block] = []
        self._open: int | None = None
        self._due = time.perf_counter() + SECONDS
        self._thread = threading.get_ident()
        if writer is not None:
            writer.upstream = self._drain_for_reader

    def add(self, stream: str, step: int, measurements: Sequence[Measurement]) -> None:
        """Take the measurements of one step.

        Args:
            stream: Cadence group.
            step: Their step.
            measurements: Values, on any device.
        """
        target = self._streams.get(stream)
        if target is None:
            target = self._streams[stream] = _Stream()
        if not target.steps or target.steps[-1] != step:
            target.steps.append(step)
            target.walls.append(time.time())
        row = len(target.steps) - 1
        for i, measurement in enumerate(measurements):
            column = measurement.column
            pending = target.columns.get(column.name)
            if pending is None or pending.column is not column:
                if pending is not None:  # the axis has changed: what was measured on the old one must go first
                    self._take(stream, target)
                    self.add(stream, step, measurements[i:])
                    return
                pending = target.columns[column.name] = _Pending(column, measurement.fold)
            if pending.rows and pending.rows[-1] == row:  # measured again: the later one stands
                pending.values[-1] = measurement.value
            else:
                pending.rows.append(row)
                pending.values.append(measurement.value)

    def log(self, step: int, name: str, value: torch.Tensor | float) -> None:
        """Take a value of the user's; several of one name and step are averaged.

        Args:
            step: Its step.
            name: Column.
            value: A number or a scalar tensor, which must not change afterwards.
        """
        self._user.setdefault(name, []).append((step, value))

    def tick(self, step: int) -> None:
        """Drain if a block of steps or a second has passed, more where drains are slow; this step's user values stay.

        Args:
            step: The step just completed.
        """
        if step % self._block == 0 or time.perf_counter() > self._due:
            self.drain(before=step)

    def drain(self, *, before: int | None = None) -> None:
        """Hand what is held to the writer.

        Args:
            before: Keep the user's values of this step and later; None: keep nothing back.
        """
        began = time.perf_counter()
        self._land()  # what the last drain sent on its way has arrived by now
        for name, stream in self._streams.items():
            self._take(name, stream)
        self._take_user(before)
        if before is None:
            self._land()
        now = time.perf_counter()
        self._due = now + min(SLOWEST, max(SECONDS, (now - began) / SHARE))

    @contextmanager
    def read_within(self, step: int) -> Generator[None]:
        """Everything measured so far is with the writer; the user's values of a step that may go on stay here.

        Args:
            step: Whose values are not complete.
        """
        self._open = step
        try:
            self._drain_for_reader()
            yield
        finally:
            self._open = None

    def _drain_for_reader(self) -> None:
        if threading.get_ident() == self._thread:  # another thread would meet the training in the middle of a step
            self.drain(before=self._open)
            self._land()

    def _land(self) -> None:
        for block in self._flying:
            self._hand_over(block)
        self._flying.clear()

    def _take(self, name: str, stream: _Stream) -> None:
        if not stream.steps:
            return
        columns: list[tuple[_Pending, torch.Tensor | np.ndarray]] = []
        device = False
        for pending in stream.columns.values():
            if pending.values:
                values, away = _stack(pending.values)
                device = device or away
                columns.append((pending, values))
        block = _Block(name, np.array(stream.steps), np.array(stream.walls), columns, _event(device))
        stream.steps, stream.walls, stream.columns = [], [], {}
        if device or any(earlier.stream == name for earlier in self._flying):  # blocks of a stream stay in order
            self._flying.append(block)
        else:
            self._hand_over(block)

    def _hand_over(self, block: _Block) -> None:
        block.ready()
        columns: list[tuple[Column, np.ndarray, np.ndarray | None]] = []
        for pending, values in block.columns:
            array = values.numpy() if isinstance(values, torch.Tensor) else values
            if pending.fold is not None:
                array = _folded(array, pending.fold, pending.column)
            columns.append(_spread(pending.column, array, pending.rows, len(block.steps)))
        if self._writer is None:
            return
        try:
            self._writer.rows(block.stream, block.steps, columns, walls=block.walls)
        except BadInput as error:  # a plug-in's values do not fit its column: that must not stop a training
            names = ", ".join(column.name for column, *_ in columns)
            warnings.warn(f"{len(block.steps)} rows of {names} are lost. {error}", DynaxxWarning, stacklevel=2)

    def _take_user(self, before: int | None) -> None:
        held = {name: [v for v in values if before is None or v[0] < before] for name, values in self._user.items()}
        held = {name: values for name, values in held.items() if values}
        if not held:
            return
        steps = np.array(sorted({step for values in held.values() for step, _ in values}))
        columns: list[tuple[Column, np.ndarray, np.ndarray | None]] = []
        for name, values in held.items():
            numbers = _host([value for _, value in values])
            of = np.array([step for step, _ in values])
            unique, first, inverse, count = np.unique(of, return_index=True, return_inverse=True, return_counts=True)
            # One value a step is kept bit for bit: a sum from zero would lose the sign of −0.0.
            means = np.where(count > 1, np.bincount(inverse, weights=numbers) / count, numbers[first])
            rows = np.searchsorted(steps, unique)
            columns.append(_spread(Column(name=name, dtype="float64"), means, rows.tolist(), len(steps)))
            self._user[name] = [] if before is None else [v for v in self._user[name] if v[0] >= before]
        if self._writer is not None:
            self._writer.rows(_USER, steps, columns)


def _folded(values: np.ndarray, fold: tuple[int, ...], column: Column) -> np.ndarray:
    """Entries that belong together reduced to one, in float64: shape (rows, fine) → (rows, axis)."""
    assert column.axis is not None
    assert column.reduce == "l2"
    squares = np.zeros((len(values), len(column.axis)))
    for entry, row in zip(np.square(values.T, dtype=np.float64), fold, strict=True):
        squares[:, row] += entry
    return np.sqrt(squares)


def _stack(values: list[Any]) -> tuple[torch.Tensor | np.ndarray, bool]:
    """One array from per-step values; True where it is still on its way from an accelerator."""
    tensors = [isinstance(v, torch.Tensor) for v in values]
    if not any(tensors):
        return np.asarray(values, dtype=np.float64), False
    if not all(tensors):  # such as a rate that has become a tensor
        return np.stack([torch.as_tensor(v, dtype=torch.float64, device="cpu").numpy() for v in values]), False
    stacked = torch.stack([v.detach() for v in values])
    if stacked.dtype in (torch.float16, torch.bfloat16):
        stacked = stacked.float()
    if stacked.device.type == "cpu":
        return stacked, False
    host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=stacked.device.type == "cuda")
    return host.copy_(stacked, non_blocking=True), True


def _event(device: bool) -> Callable[[], None]:
    if not device:
        return lambda: None
    event = torch.Event()
    event.record()
    return event.synchronize


def _host(values: list[Any]) -> np.ndarray:
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    if len(tensors) < len(values):
        return np.array([float(v) for v in values], dtype=np.float64)
    if any(t.dim() or t.dtype != tensors[0].dtype or t.device != tensors[0].device for t in tensors):
        tensors = [t.reshape(()).to(torch.float64).cpu() for t in tensors]
    return torch.stack(tensors).cpu().to(torch.float64).numpy()


def _spread(
    column: Column, values: np.ndarray, rows: list[int], n: int
) -> tuple[Column, np.ndarray, np.ndarray | None]:
    """Values of some rows as a full column with its validity."""
    typed = values.astype(column.dtype, copy=False)
    if len(rows) == n:
        return column, typed, None
    full = np.zeros((n, *typed.shape[1:]), dtype=column.dtype)
    valid = np.zeros(n, dtype=bool)
    full[rows], valid[rows] = typed, True
    return column, full, valid
