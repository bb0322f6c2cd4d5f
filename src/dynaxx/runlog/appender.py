"""The writing side of the data folder: one open segment per stream, appended to by the log's thread alone."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from dynaxx.core.records import Column
from dynaxx.runlog.block import Block
from dynaxx.runlog.disk import replace_file, sync_folder, write_all
from dynaxx.runlog.frames import END, entry, stamp
from dynaxx.runlog.schema import KEY, array_of, bits_of, checksum, schema_of

ROTATE = 64 * 2**20
"""Bytes after which a stream goes on in a new segment."""


class Segment:
    """One Arrow stream file that is being written.

    Args:
        path: A file that does not exist yet.
        columns: Its columns.

    Raises:
        OSError: It could not be made.
    """

    def __init__(self, path: Path, columns: tuple[Column, ...]) -> None:
        self.path, self.columns, self.size, self.batches = path, columns, 0, 0
        self._schema = schema_of(columns)
        self._places = {column.name: place for place, column in enumerate(columns)}
        head = bytearray(self._schema.serialize().to_pybytes())
        self._skip = len(head)  # Arrow's writer puts the schema before its first batch; ours is stamped
        self._buffer = io.BytesIO()
        self._stream = pa.ipc.new_stream(self._buffer, self._schema)
        self._digits = stamp(head)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            self._keep_schema(head)
            self._write(head)
        except OSError:
            self.abandon()
            raise

    def holds(self, columns: tuple[Column, ...]) -> bool:
        """Whether these columns are the segment's, or some of them.

        Args:
            columns: The columns of a block.

        Returns:
            True where `append` can take the block.
        """
        places = self._places
        return all(c.name in places and c == self.columns[places[c.name]] for c in columns)

    def append(self, block: Block) -> None:
        """Write a block of rows as one batch.

        Args:
            block: The rows; columns of the segment that it lacks are written as null.

        Raises:
            OSError: A part may have been written: the segment must be abandoned.
        """
        there = {c.name: (v, bits_of(m)) for c, v, m in zip(block.columns, block.values, block.valid, strict=True)}
        parts = [there.get(column.name) or _nulls(column, len(block.steps)) for column in self.columns]
        parts = [(block.steps, None), (block.walls, None), *parts]
        arrays = [array_of(field.type, *part) for field, part in zip(self._schema, parts, strict=True)]
        sums = "".join(checksum(*part) for part in parts)
        nulls = "".join("01"[bits is not None] for _, bits in parts)
        facts = entry(schema=self._digits, rows=len(block.steps), nulls=nulls, sums=sums)
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        self._stream.write_batch(batch, custom_metadata={KEY: facts})
        message = bytearray(self._buffer.getbuffer()[self._skip :])
        self._skip = 0
        self._buffer.seek(0)
        self._buffer.truncate()
        stamp(message)
        self._write(message)
        self.batches += 1

    def sync(self) -> None:
        """Make what was written survive a power loss."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Write the end marker and close the file."""
        self._write(END)
        self.abandon()

    def abandon(self) -> None:
        """Leave the file as it stands; it is removed where it holds no batch.

        It is not cut back to its last whole batch: a reader may have the torn end mapped, and would be killed by it.
        """
        descriptor, self._descriptor = self._descriptor, -1
        try:
            if descriptor >= 0:
                os.close(descriptor)
            if not self.batches:
                self.path.unlink(missing_ok=True)
        except OSError:
            pass  # nothing more can be done for this file

    def _write(self, data: bytes | bytearray) -> None:
        write_all(self._descriptor, data)
        self.size += len(data)

    def _keep_schema(self, head: bytearray) -> None:
        """A second copy of the schema: a broken bit in the first would otherwise cost the whole segment."""
        copy = self.path.parent / "schemas" / f"{self._digits}.schema"
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            replace_file(copy, bytes(head))


class DataFolder:
    """The segments of every stream of one attempt.

    Args:
        folder: The run's data folder; made when it is first needed.
        attempt: Number of the attempt.
    """

    def __init__(self, folder: Path, attempt: int) -> None:
        self.abandoned: list[str] = []
        self._folder, self._attempt = folder, attempt
        self._open: dict[str, Segment] = {}
        self._next: dict[str, int] = {}

    def write(self, stream: str, block: Block) -> None:
        """Append a block to a stream, in a new segment where a column is new or the old one is full.

        A block without some of the columns does not begin a segment: what is measured now and then comes and goes.

        Args:
            stream: The stream's name.
            block: The rows.

        Raises:
            OSError: It was not written; done again, it goes to a new segment.
        """
        segment = self._open.get(stream)
        columns = block.columns
        if segment is not None and not segment.holds(columns):
            columns += tuple(c for c in segment.columns if c.name not in {new.name for new in columns})
            self._finish(stream)
            segment = None
        elif segment is not None and segment.size >= ROTATE:
            self._finish(stream)
            segment = None
        if segment is None:
            segment = self._begin(stream, columns)
        try:
            segment.append(block)
        except OSError:
            self._give_up(stream)
            raise

    def sync(self) -> None:
        """Make everything written so far survive a power loss."""
        for stream, segment in list(self._open.items()):
            try:
                segment.sync()
            except OSError:
                self._give_up(stream)  # after a failed fsync the kernel's state of the file is unknown
                raise
        if self._open:
            sync_folder(self._folder)

    def close(self) -> None:
        """Finish every segment."""
        for stream in list(self._open):
            self._finish(stream)

    def _begin(self, stream: str, columns: tuple[Column, ...]) -> Segment:
        self._folder.mkdir(parents=True, exist_ok=True)
        while True:
            number = self._next.get(stream, 1)
            path = self._folder / f"{stream}-{self._attempt:04d}-{number:04d}.arrows"
            try:
                self._open[stream] = Segment(path, columns)
            except FileExistsError:  # given up before, and could not be removed
                self.abandoned.append(path.name)
                self._next[stream] = number + 1
            else:
                self._next[stream] = number + 1
                return self._open[stream]

    def _finish(self, stream: str) -> None:
        try:
            self._open[stream].close()
        except OSError:
            self._give_up(stream)
            raise
        del self._open[stream]

    def _give_up(self, stream: str) -> None:
        segment = self._open.pop(stream)
        segment.abandon()
        if segment.batches:
            self.abandoned.append(segment.path.name)
        else:
            self._next[stream] -= 1  # its file is gone: a full disk is tried every second, for hours


def _nulls(column: Column, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """A column that a block lacks: zeros, none of them measured."""
    shape = (rows,) if column.axis is None else (rows, len(column.axis))
    return np.zeros(shape, column.dtype), np.zeros((rows + 7) // 8, np.uint8)
