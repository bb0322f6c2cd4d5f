"""The reading side of the data folder: a segment, mapped into memory, verified batch by batch, read on as it grows."""

import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dynaxx.core.records import Column
from dynaxx.errors import CorruptData
from dynaxx.runlog.frames import END, Frame, Torn, next_frame, read_frame
from dynaxx.runlog.problems import Problem
from dynaxx.runlog.schema import checksum, columns_of, layout_of

_MAPPED = 4 * 2**20
"""Bytes from which a file is mapped: a mapping keeps its file open, and many resumes leave many small segments."""
_NAME = re.compile(r"([A-Za-z0-9_.]+)-(\d{4,})-(\d{4,})\.arrows")


class Batch:
    """Rows that were written together; nothing of them is read or verified before it is asked for.

    Args:
        segment: The segment they stand in.
        frame: Their message.
        layout: Where its fields lie, from the beginning of its body.
    """

    __slots__ = ("_body", "_layout", "_rows", "_sound", "_span", "_start", "_steps", "_sums", "segment")

    def __init__(self, segment: "Segment", frame: Frame, layout: tuple[tuple[int, int | None], ...]) -> None:
        self.segment = segment
        self._start, self._body, self._layout = frame.start, frame.body, layout
        self._rows: int = frame.facts["rows"]
        self._sums: str = frame.facts["sums"]
        self._sound: set[int] = set()
        self._steps: np.ndarray | None = None
        self._span: tuple[int, int] | None = None

    @property
    def steps(self) -> np.ndarray | None:
        """int64 of shape (rows,); None where they do not match their checksum, and the rows have no place."""
        if self._steps is None and (found := self.read(0)) is not None:
            self._steps = found[0].copy()
        return self._steps

    @property
    def span(self) -> tuple[int, int]:
        """Smallest and largest step."""
        if self._span is None:
            assert self.steps is not None
            self._span = int(self.steps.min()), int(self.steps.max())
        return self._span

    def read(self, field: int) -> tuple[np.ndarray, np.ndarray | None] | None:
        """The rows of one field; the first time, they are compared with their checksum.

        Args:
            field: Its place in the segment's schema.

        Returns:
            Values of shape (rows,) or (rows, entries), a view of the file, and the mask of measured rows or None. None
            instead where they do not match.
        """
        kind, entries = self.segment.formats[field]
        data, rows = self.segment.data, self._rows
        at, bits_at = self._layout[field]
        values = np.frombuffer(data, kind, rows * max(1, entries), self._body + at)
        bits = None if bits_at is None else np.frombuffer(data, np.uint8, (rows + 7) // 8, self._body + bits_at)
        if field not in self._sound:
            if checksum(values, bits) != self._sums[16 * field : 16 * field + 16]:
                return None
            self._sound.add(field)
        shaped = values.reshape(rows, entries) if entries else values
        return shaped, None if bits is None else np.unpackbits(bits, count=rows, bitorder="little").view(np.bool_)

    def problem(self, field: int) -> Problem:
        """What to say of a field that does not match its checksum.

        Args:
            field: Its place in the segment's schema.

        Returns:
            The problem.
        """
        name = self.segment.schema.field(field).name
        lost = f"all columns of {self._rows} rows"
        if field and self.steps is not None:
            lost = f"column {name!r} of steps {self.span[0]} to {self.span[1]}"
        what = f"the values of {name!r} do not match their checksum"
        return Problem(file=self.segment.file, at=self._start, what=what, lost=lost)


class Segment:
    """One Arrow stream file.

    Args:
        folder: The run's folder.
        path: The file.
        stream: Which stream it belongs to.
        attempt: Which attempt wrote it.
        number: Its place among the stream's segments of that attempt, from 1.
    """

    def __init__(self, folder: Path, path: Path, *, stream: str, attempt: int, number: int) -> None:
        self.path, self.stream, self.attempt, self.number = path, stream, attempt, number
        self.file = path.relative_to(folder).as_posix()
        self.batches: list[Batch] = []
        self.fields: dict[str, tuple[int, Column]] = {}
        self.problems: list[Problem] = []
        self.tail: Problem | None = None
        self.torn = False
        self.closed = False
        self.schema: Any = None
        self.formats: list[tuple[np.dtype[Any], int]] = []
        self.data: bytes | mmap.mmap = b""
        self._digits = ""
        self._end = 0
        self._layouts: dict[tuple[int, str, int], tuple[tuple[int, int | None], ...]] = {}

    def extend(self) -> None:
        """Read on from where the last call ended; what is torn at the end of the file is left for the next."""
        if self.closed or not self._map():
            return
        broken: tuple[int, CorruptData] | None = None
        start: int | None = self._end
        while start is not None and start < len(self.data) and not self.closed:
            if self.data[start : start + len(END) + 1] == END:
                self.closed, self._end = True, len(self.data)
                break
            try:
                end = self._take(read_frame(self.data, start))
            except CorruptData as error:
                broken = broken or (start, error)
                start = next_frame(self.data, start + 1)
                continue
            if broken is not None:
                self.problems.append(self._gap(broken, start))
            broken, start, self._end = None, end, end
        self.tail = None if broken is None else self._gap(broken, len(self.data))
        # A power loss can leave zeros where an append was under way.
        self.torn = broken is not None and (isinstance(broken[1], Torn) or not self.data[broken[0] :].strip(b"\0"))

    def _map(self) -> bool:
        """Take the file as it is now; False where it has not grown, or cannot be read."""
        try:
            size = self.path.stat().st_size
            if size <= self._end:
                return False
            with self.path.open("rb") as file:
                self.data = file.read() if size < _MAPPED else mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except FileNotFoundError:  # its writer gave it up since the folder was listed
            return False
        except (OSError, ValueError) as error:  # ValueError: it was cut short in between
            self.problems = [Problem(file=self.file, what=str(error), lost="all that it holds")]
            return False
        return True

    def _gap(self, broken: tuple[int, CorruptData], end: int) -> Problem:
        start, error = broken
        return Problem(file=self.file, at=start, what=str(error), lost=f"{end - start} bytes")

    def _take(self, frame: Frame) -> int:
        if frame.end is None:
            raise Torn("the file ends within a message")
        if "axes" in frame.facts:
            self._learn(frame)
        else:
            if self._digits != frame.facts["schema"]:
                self._recover(frame.facts["schema"])
            # Batches alike in these lie alike, and Arrow needs to take only the first of them apart.
            alike = (frame.facts["rows"], frame.facts["nulls"], frame.end - frame.body)
            if alike not in self._layouts:
                self._layouts[alike] = layout_of(frame.message, self.schema)
            self.batches.append(Batch(self, frame, self._layouts[alike]))
        return frame.end

    def _learn(self, frame: Frame) -> None:
        self._digits = frame.digits
        self.schema = pa.ipc.read_schema(frame.message)
        columns = columns_of(self.schema, frame.facts["axes"])
        self.fields = {column.name: (place, column) for place, column in enumerate(columns, start=1)}
        self.formats = [(np.dtype(np.int64), 0)]
        self.formats += [(np.dtype(c.dtype), 0 if c.axis is None else len(c.axis)) for c in columns]

    def _recover(self, digits: str) -> None:
        """Take the second copy of a schema whose first is broken."""
        copy = self.path.parent / "schemas" / f"{digits}.schema"
        try:
            frame = read_frame(copy.read_bytes(), 0)
        except OSError as error:
            raise CorruptData(f"the schema is broken and its copy cannot be read ({error})") from None
        if frame.digits != digits:
            raise CorruptData(f"the schema is broken and its copy {copy.name} is another")
        self._learn(frame)


def find_segments(folder: Path) -> list[Segment]:
    """Every segment of a run, none read yet.

    Args:
        folder: The run's folder.

    Returns:
        The segments by attempt, number and stream.
    """
    found: list[Segment] = []
    for path in (folder / "data").glob("*.arrows"):
        if match := _NAME.fullmatch(path.name):
            stream, attempt, number = match.groups()
            found.append(Segment(folder, path, stream=stream, attempt=int(attempt), number=int(number)))
    return sorted(found, key=lambda s: (s.attempt, s.number, s.stream))
