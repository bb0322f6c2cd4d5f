"""Plain file operations: bytes are handed to the operating system whole, or an OSError says that they were not."""

import os
import uuid
from pathlib import Path


def write_all(descriptor: int, data: bytes | bytearray) -> None:
    """Write every byte; a disk that fills up writes fewer first and fails at the next try.

    Args:
        descriptor: An open file.
        data: What to write.

    Raises:
        OSError: The disk is full, read-only or gone; a part may have been written.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def replace_file(path: Path, data: bytes) -> None:
    """Make a file hold these bytes or what it held before, nothing between, power loss included.

    Args:
        path: The file; its folder must exist.
        data: The new content.

    Raises:
        OSError: It could not be written; the old content stands.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power loss.

    Args:
        folder: The folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
