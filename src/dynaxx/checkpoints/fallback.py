"""The latest checkpoint that is valid: corrupted ones are passed over, newest first, until one can be read whole."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynaxx.checkpoints.manifest import CheckpointInfo
from dynaxx.errors import BadInput, CorruptData

Loaded = tuple[dict[str, Any], CheckpointInfo]
"""A state, and the checkpoint that it was read from."""


def latest_valid(
    folder: Path, names: Iterable[str], read: Callable[[str], Loaded], set_aside: Callable[[str, CorruptData], bool]
) -> Loaded:
    """Read the first checkpoint that can be read.

    Args:
        folder: The store, for the message.
        names: Checkpoints' names in the order of preference.
        read: Verifies and reads one.
        set_aside: Told what is corrupted, and why; returns whether it was there at all.

    Returns:
        What was read; its info says what was passed over.

    Raises:
        BadInput: There is none.
        CorruptData: All are corrupted.
    """
    passed_over: list[str] = []
    for name in names:
        try:
            state, info = read(name)
        except CorruptData as error:
            if set_aside(name, error):
                passed_over.append(name)
        else:
            return state, replace(info, passed_over=tuple(passed_over))
    if passed_over:
        raise CorruptData(f"Every checkpoint in {folder} is corrupted: {', '.join(passed_over)}.")
    raise BadInput(f"load(): {folder} holds no checkpoint. Was the run's folder given, and did it save?")
