"""Files and folders that are still there after the power goes: written whole, synced, never through a link."""

import errno
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import TypeVar

import xxhash

from dynaxx.errors import CorruptData

T = TypeVar("T")


def write_durably(path: Path, parts: Sequence[bytes | memoryview], meanwhile: Callable[[], T]) -> T:
    """Write a new file and wait until it is on disk.

    After a failed sync the kernel takes the pages for written, so that syncing the file again succeeds and proves
    nothing (Rebello et al., 2020): an input/output error is answered by writing once more, elsewhere on the disk.

    Args:
        path: The file; it must not exist.
        parts: Its bytes, in order.
        meanwhile: Called in a second thread while this one waits for the disk: for hashing, which lets go of the
            interpreter.

    Returns:
        What `meanwhile` returned.

    Raises:
        OSError: The disk is full, read-only or broken.
    """
    try:
        return _written(path, parts, meanwhile)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    again = path.with_name(path.name + ".again")  # the first one stays meanwhile, and keeps its bad blocks
    result = _written(again, parts, meanwhile)
    again.replace(path)
    return result


def plain_size(path: Path) -> int:
    """The size of a regular file; a symbolic link is refused.

    Args:
        path: The file.

    Returns:
        Its bytes.

    Raises:
        CorruptData: The file is missing or not a regular one.
    """
    if path.is_symlink() or not path.is_file():
        raise CorruptData(f"{path} is missing, or is not a regular file.")
    return path.stat().st_size


def digest(data: bytes | memoryview) -> str:
    """The checksum used everywhere in a checkpoint: xxh3 with 128 bits, as 32 hex digits.

    Args:
        data: The bytes.

    Returns:
        The digest.

    Example:
        >>> digest(b"")
        '99aa06d3014798d86001c324468d497f'
    """
    return xxhash.xxh3_128_hexdigest(data)


def _written(path: Path, parts: Sequence[bytes | memoryview], meanwhile: Callable[[], T]) -> T:
    with path.open("xb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        result = _beside(meanwhile)  # not sooner: beside the copying it costs 25 %, beside the disk 2 %
        try:
            os.fsync(file.fileno())
        finally:
            outcome = result.result()
    return outcome


def _beside(function: Callable[[], T]) -> Future[T]:
    """A call in a second thread; in this one where there can be none: at the interpreter's exit, or at a limit."""
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # whatever it is belongs to who asks for the result
            future.set_exception(error)

    try:
        Thread(target=call, daemon=True).start()
    except RuntimeError:
        call()
    return future
