"""How often training went on from a checkpoint without reaching the next: one that verifies may still bring it down."""

import contextlib
import os
from pathlib import Path

_FOLDER = "attempts"


def attempts(folder: Path, name: str) -> int:
    """How often a checkpoint was gone on from since the last save.

    Args:
        folder: The store.
        name: The checkpoint's.

    Returns:
        The count.
    """
    try:
        return (folder / _FOLDER / name).stat().st_size
    except OSError:
        return 0


def count_attempt(folder: Path, name: str) -> None:
    """Count one more: before it is tried, since it may end in a crash. A medium that takes nothing counts nothing.

    Args:
        folder: The store.
        name: The checkpoint's.
    """
    with contextlib.suppress(OSError):
        (folder / _FOLDER).mkdir(exist_ok=True)
        # One appended byte each, which two processes do not lose.
        descriptor = os.open(folder / _FOLDER / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, b".")
        finally:
            os.close(descriptor)


def forget_attempts(folder: Path) -> None:
    """Count anew: the training came as far as a save.

    Args:
        folder: The store.
    """
    with contextlib.suppress(OSError):
        for file in (folder / _FOLDER).iterdir():
            file.unlink()
