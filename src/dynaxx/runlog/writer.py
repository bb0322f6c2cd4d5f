"""LogWriter: what a running training hands its numbers to; a thread of its own brings them to disk."""

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dynaxx.core.records import Column
from dynaxx.errors import BadInput, DynaxxWarning, RunFolderExists
from dynaxx.runlog import manifest as records
from dynaxx.runlog.appender import DataFolder
from dynaxx.runlog.block import block_of
from dynaxx.runlog.events import EventFile
from dynaxx.runlog.manifest import ROLLED_BACK, Attempt
from dynaxx.runlog.sealed import seal
from dynaxx.runlog.spool import Spool

CAPACITY = 256 * 2**20
"""Bytes of rows that may wait for a slow or full disk."""
_live: dict[Path, "LogWriter"] = {}


class LogWriter:
    """The log of one process (attempt) of a run: append only, crash-safe, never in the way of the training.

    Rows and events are queued and written by one background thread within milliseconds. A disk that is full,
    read-only or gone raises nothing: one warning, new tries every second, at most 256 MiB kept in memory; what does
    not fit is counted in `lost`, in the attempt's record and in a "lost" event. After a fork the child writes nothing.

    Args:
        folder: The run's own folder, made where it is missing.
        manifest: What the run is; goes to `run.json`. On resume, what `run.json` says already stands.
        start_step: Optimizer updates that are complete now.
        resume: Whether to go on with the run that the folder holds, in a new attempt.

    Raises:
        RunFolderExists: The folder holds a run and `resume` is False.
        BadInput: The folder is a file, or was written by a newer version.
    """

    def __init__(
        self, folder: str | Path, *, manifest: Mapping[str, Any], start_step: int = 0, resume: bool = False
    ) -> None:
        self.folder = Path(folder)
        if os.path.isfile(self.folder):  # unlike Path.is_file, it does not raise where it may not look
            raise BadInput(f"The run folder {self.folder} is a file. Give a folder.")
        if not resume and holds_run(self.folder):
            raise RunFolderExists(
                f"{self.folder} holds a run already. Go on with it by resume=True (--resume), or give another folder."
            )
        self._manifest = {**manifest, **_kept_manifest(self.folder)}
        self._closed = self._warned = False
        self._told, self._before, self._step = 0, 0, start_step
        trouble = None
        try:
            attempt = records.claim_attempt(self.folder)
        except OSError as error:
            trouble, attempt = str(error), records.last_attempt(self.folder) + 1
        self._number = attempt
        self._attempt = Attempt.begin(attempt, start_step)
        self._data = DataFolder(self.folder / "data", attempt)
        self._events = EventFile(self.folder)
        self._spool = Spool(CAPACITY, after=self._account)
        self._spool.trouble = trouble
        self.upstream: Callable[[], None] = lambda: None
        """Brings here what is still held before this log; called by a reader in the same process."""
        _live[self.folder.resolve()] = self
        self._spool.put(self._save(self._manifest))
        self._spool.put(self._write_attempt)
        self._spool.drain(timeout=5.0)
        self._warn()

    @property
    def attempt(self) -> int:
        """Number of the attempt within the run, from 1."""
        return self._number

    @property
    def lost(self) -> int:
        """Rows that could not be written."""
        return self._spool.lost

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def rows(
        self,
        stream: str,
        steps: np.ndarray | Sequence[int],
        columns: Sequence[tuple[Column, np.ndarray, np.ndarray | None]],
        *,
        walls: np.ndarray | Sequence[float] | None = None,
    ) -> None:
        """Log rows; they are copied, and a block of 64 or more costs least.

        Args:
            stream: Which stream: what is measured together belongs into one, as a new column begins a new file.
            steps: Optimizer updates complete at each row, int64 of shape (rows,).
            columns: Per column its values, of shape (rows,) or (rows, entries of its axis), and the mask of shape
                (rows,) that is False where nothing was measured; None: all was.
            walls: UTC seconds of each row; None: now.

        Raises:
            BadInput: A name or a shape is wrong, or the log is closed.
        """
        self._must_be_open("rows")
        block = block_of(stream, steps, columns, walls)
        if len(block.steps):
            self._step = int(block.steps[-1])
            self._spool.put(lambda: self._data.write(stream, block), size=block.size, rows=len(block.steps))
        self._warn()

    def event(self, kind: str, *, step: int, **fields: Any) -> None:
        """Append one line to the events.

        Args:
            kind: What it is ("finding", "receipt", "warning", …).
            step: Optimizer updates complete.
            fields: What it says; dataclasses and arrays are welcome, numbers that are not finite become text.

        Raises:
            BadInput: A field is named `time` or `attempt`, or the log is closed.
        """
        self._must_be_open("event")
        if taken := {"time", "attempt"} & fields.keys():
            raise BadInput(f"LogWriter.event({kind!r}): the fields {sorted(taken)} are set by the log. Rename yours.")
        line = seal({"kind": kind, "step": step, "time": time.time(), "attempt": self.attempt, **fields})
        self._spool.put(lambda: self._events.append(line), size=len(line))
        self._warn()

    def update_manifest(self, **fields: Any) -> None:
        """Add to `run.json`, or change what it says.

        Args:
            fields: Name → value.
        """
        self._must_be_open("update_manifest")
        self._manifest = {**self._manifest, **fields}
        self._spool.put(self._save(self._manifest))
        self._warn()

    def begin_attempt(self, start_step: int, status: str = ROLLED_BACK) -> int:
        """Go on in a new attempt: the steps after its start are taken anew, and those of this one no longer stand.

        Args:
            start_step: Optimizer updates that are complete now.
            status: How the attempt so far ended.

        Returns:
            The new attempt's number.

        Raises:
            BadInput: The log is closed.
        """
        self._must_be_open("begin_attempt")
        try:
            number = records.claim_attempt(self.folder)
        except OSError:  # the log tells of the disk's trouble when it writes
            number = self._number + 1
        self._number, self._step = number, start_step
        attempt = Attempt.begin(number, start_step)
        self._spool.put(lambda: self._turn(attempt, status))
        return number

    def flush(self, timeout: float = 30.0, *, fsync: bool = False) -> bool:
        """Wait until everything logged so far is with the operating system, where a killed process loses nothing.

        Args:
            timeout: Seconds to wait at most.
            fsync: Wait for the disk itself as well, so that a power loss loses nothing either.

        Returns:
            Whether it is; False at once where the disk refuses.
        """
        synced: list[bool] = []
        if fsync and not self._closed:
            self._spool.put(lambda: synced.append(self._sync()))
        done = self._spool.drain(timeout)
        self._warn()
        return done and (not fsync or self._closed or synced == [True])

    def close(self, status: str = "finished", timeout: float = 60.0) -> None:
        """Write what waits and the attempt's end. What the disk still refuses is lost. A second call does nothing.

        Args:
            status: How the attempt ended.
            timeout: Seconds to wait at most.
        """
        if self._closed:
            return
        self._closed = True
        self._spool.put(self._data.close)
        self._spool.put(lambda: self._end(status))
        self._spool.stop(timeout)
        if _live.get(place := self.folder.resolve()) is self:
            del _live[place]
        self._warn()

    def _save(self, manifest: Mapping[str, Any]) -> Callable[[], None]:
        return lambda: records.write_manifest(self.folder, manifest)

    def _turn(self, attempt: Attempt, status: str) -> None:
        """In the thread: end one attempt and begin the next; done again after an error, it does the rest."""
        if self._attempt.n != attempt.n:
            self._data.close()
            self._attempt = replace(self._attempt, ended=records.utc(), status=status)
            self._write_attempt()
            self._attempt, self._before = attempt, self.lost
            self._data = DataFolder(self.folder / "data", attempt.n)
        self._write_attempt()

    def _write_attempt(self) -> None:
        self._attempt = replace(self._attempt, lost=self.lost - self._before, abandoned=tuple(self._data.abandoned))
        self._attempt.write(self.folder)

    def _sync(self) -> bool:
        """Not tried again: what a failed fsync did not bring to disk, a second one does not either, and succeeds."""
        try:
            self._data.sync()
            self._events.sync()
        except OSError as error:
            self._spool.trouble = self._spool.trouble or str(error)
            return False
        return True

    def _end(self, status: str) -> None:
        with suppress(OSError):  # the record below says it too
            self._account()
            self._events.close()
        self._attempt = replace(self._attempt, ended=records.utc(), status=status)
        self._write_attempt()

    def _account(self) -> None:
        """In the thread: bring new losses to disk as soon as it takes something again."""
        lost = self.lost
        if lost > self._told:
            facts = {"time": time.time(), "attempt": self.attempt, "rows": lost - self._told}
            self._events.append(seal({"kind": "lost", "step": self._step, **facts}))
            self._told = lost
            self._write_attempt()

    def _warn(self) -> None:
        """From the caller's thread: a warning raised within the log's own would be lost."""
        if self._spool.trouble is None or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"LogWriter({str(self.folder)!r}): the run log cannot be written as it comes ({self._spool.trouble}). "
            f"Training goes on; up to {CAPACITY >> 20} MiB wait in memory and are written as soon as the disk takes "
            "them, what does not fit is lost and counted. Make room, or make the folder writable.",
            DynaxxWarning,
            stacklevel=3,
        )

    def _must_be_open(self, call: str) -> None:
        if self._closed:
            raise BadInput(f"LogWriter.{call}(...): the log of {self.folder} is closed.")


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a run, even one that was killed before its manifest was written.

    Args:
        folder: Any path.

    Returns:
        True where there is a manifest, an attempt or a segment.
    """
    try:
        return (folder / records.NAME).exists() or records.last_attempt(folder) > 0
    except OSError:
        return False


def flush_live(folder: Path) -> None:
    """Bring what this process has logged into a folder to disk, so that it can be read.

    Args:
        folder: A run folder, resolved.
    """
    if folder in _live:
        _live[folder].upstream()
        _live[folder].flush(timeout=5.0)


def _kept_manifest(folder: Path) -> dict[str, Any]:
    """What `run.json` says; one that cannot be trusted is set aside, not written over."""
    record, problem = records.read_manifest(folder)
    if problem is None:
        return record
    try:
        (folder / records.NAME).replace(folder / f"{records.NAME}.unreadable")
    except OSError:
        pass
    return {}
