"""`events.jsonl`: one sealed JSON line per finding, action, receipt, warning or self-test, in the order they came."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynaxx.errors import CorruptData
from dynaxx.runlog.disk import write_all
from dynaxx.runlog.problems import Problem
from dynaxx.runlog.sealed import unseal

NAME = "events.jsonl"
RETURNS = frozenset({"resumed", "rolled_back"})
"""Kinds of events that say that the run went on from an earlier step, which is the event's."""


class EventFile:
    """Appends lines to the events of a run; a line that an earlier process left torn is ended first.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._descriptor = folder / NAME, -1

    def append(self, line: bytes) -> None:
        """Write one line.

        Args:
            line: What `seal` returned.

        Raises:
            OSError: It was not written whole; it can be written again.
        """
        if self._descriptor < 0:
            self._open()
        try:
            write_all(self._descriptor, line + b"\n")
        except OSError:
            self.close()  # reopening ends the torn line
            raise

    def sync(self) -> None:
        """Make what was written survive a power loss."""
        if self._descriptor >= 0:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(self._descriptor).st_size
            if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
                write_all(self._descriptor, b"\n")
        except OSError:
            self.close()
            raise


class EventReader:
    """Reads the events of a run; lines that were appended since are read by the next `extend`.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []
        self.tail: Problem | None = None
        self._path, self._end = folder / NAME, 0

    def extend(self) -> None:
        """Read on from where the last call ended, whole lines only."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._end)
                data = file.read()
        except FileNotFoundError:
            return
        except OSError as error:
            self.problems = [Problem(file=NAME, what=str(error), lost="the events")]
            return
        for line in data.split(b"\n")[:-1]:
            if line:
                self._read(line)
            self._end += len(line) + 1
        torn = len(data) - data.rfind(b"\n") - 1
        self.tail = Problem(file=NAME, at=self._end, what="torn line", lost=f"the last {torn} bytes") if torn else None

    def _read(self, line: bytes) -> None:
        try:
            event, intact = unseal(line)
            if not intact:
                raise CorruptData("its checksum does not match")
        except CorruptData as error:
            # A killed process leaves the beginning of a line, which the next attempt ends with a line feed.
            whole = line.endswith(b"}")
            bad = Problem(file=NAME, at=self._end, what=str(error) if whole else "torn line", lost="one event")
            (self.problems if whole else self.notes).append(bad)
        else:
            self.events.append(event)


def standing(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events without those that a resume or a rollback went back behind: what the run of now has lived through.

    Args:
        events: All of them, in the order they were written.

    Returns:
        Those that stand, in order.

    Example:
        >>> lines = [("check", 3), ("check", 9), ("rolled_back", 5), ("check", 6)]
        >>> [(e["kind"], e["step"]) for e in standing([{"kind": k, "step": s} for k, s in lines])]
        [('check', 3), ('rolled_back', 5), ('check', 6)]
    """
    kept: list[dict[str, Any]] = []
    for event in events:
        if event.get("kind") in RETURNS:
            kept = [earlier for earlier in kept if earlier.get("step", 0) <= event.get("step", 0)]
        kept.append(event)
    return kept
