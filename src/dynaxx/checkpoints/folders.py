"""The folders of a store: what they are called, in which order they count, and how one is moved out of sight."""

import errno
import os
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from dynaxx.checkpoints.manifest import Origin
from dynaxx.errors import CorruptData
from dynaxx.runlog.disk import sync_folder

STAGING = ".staging"
TRASH = "trash"
QUARANTINE = "quarantine"
_ID = r"\d{6,}-[0-9a-f]{8}"
ID = re.compile(_ID)
"""What tells apart the checkpoints of a run: number of the save, chance."""
FOLDER = re.compile(rf"\d{{10,}}-{_ID}")
"""The name of a checkpoint's folder: step, id."""


def committed(folder: Path) -> list[str]:
    """Names of the checkpoints in a folder, oldest first.

    Args:
        folder: A store, its trash or its quarantine; it need not exist.

    Returns:
        The names by step, then by number of the save; no clock is asked.
    """
    return sorted(filter(FOLDER.fullmatch, os.listdir(folder)), key=place) if folder.is_dir() else []


def place(name: str) -> tuple[int, int, str]:
    """What checkpoints are ordered by.

    Args:
        name: A checkpoint's.

    Returns:
        Step, number of the save, chance.

    Example:
        >>> place("0000001000-000003-9f3c12ab")
        (1000, 3, '9f3c12ab')
    """
    step, number, chance = name.split("-")
    return int(step), int(number), chance


def next_number(folder: Path) -> int:
    """One more than any save before, so that the order of saves does not hang on a clock.

    Args:
        folder: The store.

    Returns:
        The number of the next save.
    """
    folders = (folder, folder / QUARANTINE, folder / TRASH)
    return 1 + max((place(name)[1] for place_ in folders for name in committed(place_)), default=0)


def left_behind(names: Iterable[str], origins: Iterable[Origin | None]) -> set[str]:
    """The checkpoints that a training has gone back past and does not build on any more.

    Args:
        names: The checkpoints of a store.
        origins: What their manifests say that training had gone back to.

    Returns:
        Those saved before it went back, at a later step than it went back to.

    Example:
        >>> names = ["0000000100-000001-00000000", "0000000200-000002-00000000", "0000000150-000003-00000000"]
        >>> left_behind(names, {None, Origin(checkpoint=names[0], number=3)})
        {'0000000200-000002-00000000'}
    """
    back = [(place(origin.checkpoint)[0], origin.number) for origin in origins if origin is not None]
    return {name for name in names if any(place(name)[0] > step and place(name)[1] < number for step, number in back)}


def made(folder: Path, name: str) -> Path:
    """A sub-folder of a store, made durably if it is not there.

    Args:
        folder: The store.
        name: The sub-folder.

    Returns:
        Its path.
    """
    path = folder / name
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
        sync_folder(folder)
    return path


@contextmanager
def unreadable_is_corrupt(path: Path) -> Generator[None]:
    """A medium that cannot be read any more is treated like one that reads other bytes.

    Args:
        path: The checkpoint's folder, for the message.

    Yields:
        Nothing.

    Raises:
        CorruptData: Reading failed with an input/output error, or a file is gone.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EIO, errno.ENOENT):
            raise
        raise CorruptData(f"{path} cannot be read: {error}.") from error
