"""`run.json`, what a run is, and `attempts/<n>.json`, one per process that trained it."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dynaxx.errors import BadInput, CorruptData
from dynaxx.runlog.disk import replace_file
from dynaxx.runlog.problems import Problem
from dynaxx.runlog.sealed import seal, unseal

FORMAT = 1
"""Version of the layout of a run folder."""
NAME = "run.json"
MISSING = "missing"
ROLLED_BACK = "rolled back"
"""Status of an attempt that the same process left for an earlier step: its steps after that no longer stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One process that trained the run, from its start on or from where it rolled back to.

    Args:
        n: Its number, from 1.
        started: When, in UTC (ISO 8601).
        pid: Its process id.
        host: Its machine's name.
        start_step: Optimizer updates that were complete when it began.
        ended: When it closed the log; None: it is running, or was killed.
        status: "finished", or what it said of its end.
        lost: Rows that it could not write.
        abandoned: Segments that it gave up after a failed write; their ends may be torn.
    """

    n: int
    started: str
    pid: int
    host: str
    start_step: int
    ended: str | None = None
    status: str | None = None
    lost: int = 0
    abandoned: tuple[str, ...] = ()

    @classmethod
    def begin(cls, n: int, start_step: int) -> "Attempt":
        """The record of this process.

        Args:
            n: Its number.
            start_step: Optimizer updates complete.

        Returns:
            The record.
        """
        return cls(n=n, started=utc(), pid=os.getpid(), host=socket.gethostname(), start_step=start_step)

    def write(self, folder: Path) -> None:
        """Replace the record's file.

        Args:
            folder: The run's folder.
        """
        place = folder / "attempts"
        place.mkdir(parents=True, exist_ok=True)
        replace_file(place / f"{self.n}.json", seal({name: getattr(self, name) for name in self.__slots__}, indent=1))


def utc() -> str:
    """Now, in UTC (ISO 8601)."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def claim_attempt(folder: Path) -> int:
    """Take the next attempt's number; two processes started on one folder get different ones.

    Args:
        folder: The run's folder, made where it is missing.

    Returns:
        The number, from 1.

    Raises:
        OSError: The folder cannot be written.
    """
    place = folder / "attempts"
    place.mkdir(parents=True, exist_ok=True)
    n = last_attempt(folder) + 1
    while True:
        try:
            os.close(os.open(place / f"{n}.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            n += 1
        else:
            return n


def last_attempt(folder: Path) -> int:
    """The highest number of an attempt that left a record or a segment; 0: none.

    Args:
        folder: The run's folder.

    Returns:
        The number.
    """
    records = [path.stem for path in (folder / "attempts").glob("*.json")]
    segments = [path.stem.split("-")[-2] for path in (folder / "data").glob("*-*-*.arrows")]
    return max((int(number) for number in records + segments if number.isdecimal()), default=0)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace `run.json`.

    Args:
        folder: The run's folder, made where it is missing.
        manifest: What the run is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / NAME, seal({**manifest, "format": FORMAT}, indent=1))


def read_manifest(folder: Path) -> tuple[dict[str, Any], Problem | None]:
    """Read `run.json`.

    Args:
        folder: The run's folder.

    Returns:
        The manifest, as far as it can be read, and what is wrong with it.

    Raises:
        BadInput: It was written by a newer version.
    """
    record, problem = _read(folder, NAME)
    if isinstance(version := record.get("format", FORMAT), int) and version > FORMAT and problem is None:
        raise BadInput(f"{folder} was written in format {version}; this version reads up to {FORMAT}. Update dynaxx.")
    return record, problem


def read_attempts(folder: Path) -> tuple[dict[int, Attempt], list[Problem], list[Problem]]:
    """Read the attempts' records.

    Args:
        folder: The run's folder.

    Returns:
        Number → record in order, the problems, and what is no problem: a process killed before it wrote its record.
    """
    attempts: dict[int, Attempt] = {}
    problems: list[Problem] = []
    notes: list[Problem] = []
    numbers = sorted(int(p.stem) for p in (folder / "attempts").glob("*.json") if p.stem.isdecimal())
    for n in numbers:
        name = f"attempts/{n}.json"
        record, problem = _read(folder, name)
        if problem is None:
            record["abandoned"] = tuple(record["abandoned"])
            attempts[n] = Attempt(**{name: record[name] for name in Attempt.__slots__ if name in record})
        elif (folder / name).stat().st_size == 0:
            notes.append(Problem(file=name, what="empty: killed at its start", lost="nothing"))
        else:
            problems.append(problem)
    return attempts, problems, notes


def _read(folder: Path, name: str) -> tuple[dict[str, Any], Problem | None]:
    try:
        record, intact = unseal((folder / name).read_bytes())
    except (OSError, CorruptData) as error:
        what = MISSING if isinstance(error, FileNotFoundError) else str(error)
        return {}, Problem(file=name, what=what, lost="what it says")
    if intact:
        return record, None
    return record, Problem(
        file=name, what="its checksum does not match", lost="certainty: what it says is shown as read"
    )
