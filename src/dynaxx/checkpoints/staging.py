"""Whose staging folder this is: names that tell a save in progress from what a dead process left behind."""

import contextlib
import functools
import hashlib
import os
import platform
import shutil
import time
from pathlib import Path

import psutil

_STALE = 24 * 3600.0
"""Seconds after which a staging folder of another machine counts as left behind; no save takes a day."""
_CLOCK = 60.0
"""Seconds by which a process' reported start may move: it is derived from the clock, which may be set meanwhile."""


def staging_name(checkpoint: str) -> str:
    """The name of this process' staging folder for a checkpoint.

    Args:
        checkpoint: The name that the checkpoint will have.

    Returns:
        That name, the machine, the process and its start.
    """
    process = psutil.Process()
    return f"{checkpoint}.{_machine()}.{process.pid}.{int(process.create_time())}"


def is_orphan(folder: Path) -> bool:
    """Whether the process that made a staging folder is gone.

    Args:
        folder: A staging folder; one that another machine (or container) made is an orphan after a day.

    Returns:
        True if nobody writes to it any more.
    """
    parts = folder.name.rsplit(".", 3)
    if len(parts) != 4 or parts[1] != _machine() or not (parts[2] + parts[3]).isdecimal():
        with contextlib.suppress(FileNotFoundError):
            return time.time() - folder.stat().st_mtime > _STALE
        return False
    try:
        process = psutil.Process(int(parts[2]))
        return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - int(parts[3])) > _CLOCK
    except psutil.NoSuchProcess:
        return True


def sweep(staging: Path, trash: Path) -> None:
    """Delete what nobody needs any more, as far as the system lets it.

    Args:
        staging: The folder of staging folders; orphans go.
        trash: The folder of what was renamed to be deleted; everything goes.
    """
    for folder in (*staging.glob("*"), *trash.glob("*")):
        if folder.parent == trash or is_orphan(folder):
            shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _machine() -> str:
    """Tells apart machines, boots and process namespaces: within one, a process id means one process."""
    facts = [platform.node()]
    with contextlib.suppress(OSError):  # Linux only; elsewhere the name has to do
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.blake2b("|".join(facts).encode(), digest_size=4).hexdigest()
