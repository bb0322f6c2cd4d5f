"""How often training went on from a checkpoint without reaching the next: one that verifies may still bring it down."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from dynaxx.errors import DynaxxWarning

_FOLDER = "attempts"


def tired_last(folder: Path, names: Sequence[str], tries: int | None) -> Iterator[str]:
    """Checkpoints to try in turn: those tried too often since the last save come last, and each try is counted.

    Args:
        folder: The store.
        names: The checkpoints, best first.
        tries: How many tries are too often; None: nothing is counted or moved.

    Yields:
        The names; a `DynaxxWarning` names those that were moved.
    """
    if tries is not None:
        tired = {name for name in names if _size(folder / _FOLDER / name) >= tries}
        if tired and len(tired) < len(names):
            message = f"Training went on from {', '.join(sorted(tired))} {tries} times without reaching a save"
            warnings.warn(f"{message}: passed over for another checkpoint.", DynaxxWarning, stacklevel=5)
        names = sorted(names, key=tired.__contains__)
    for name in names:
        if tries is not None:
            _count(folder / _FOLDER / name)  # before it is tried, since it may end in a crash
        yield name


def forget_attempts(folder: Path) -> None:
    """Count anew: the training came as far as a save.

    Args:
        folder: The store.
    """
    with contextlib.suppress(OSError):
        for file in (folder / _FOLDER).iterdir():
            file.unlink()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _count(file: Path) -> None:
    """One more byte, appended, so that no two processes lose one; a medium that takes nothing counts nothing."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, b".")
        finally:
            os.close(descriptor)
