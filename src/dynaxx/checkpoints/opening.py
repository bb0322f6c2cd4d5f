"""From what a user names, a run's folder, a folder of checkpoints or a URL, to the place and the checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynaxx.checkpoints.manifest import CheckpointInfo
from dynaxx.checkpoints.places import LocalPlace, Place, original
from dynaxx.errors import BadInput


def open_place(target: str | Path, **options: Any) -> Place:
    """The place of checkpoints that a user means.

    Args:
        target: A run's folder, a folder of checkpoints, or the URL of one; a URL may also be that of a run's folder,
            where the checkpoints are in its `checkpoints`.
        options: What the file system of a URL takes.

    Returns:
        The place.

    Raises:
        BadInput: There is no such folder, nothing in it, or the URL cannot be read.
    """
    text = str(target)
    if "://" in text and not text.startswith("file://"):
        candidates = _behind_url(text, options)
    else:
        folder = Path(text.removeprefix("file://"))
        if not folder.is_dir():
            raise BadInput(f"{text}: there is no such folder. Give a run's folder, its checkpoints' or their URL.")
        if (folder / "checkpoints").is_dir():
            return LocalPlace(folder / "checkpoints")
        candidates = [LocalPlace(folder)]
    try:
        for place in candidates:
            if place.list() or place.archive.list():
                return place
    except OSError as error:
        raise BadInput(
            f"{text} cannot be read: {error}. Is it the right name, and are there credentials and a connection?"
        ) from error
    raise BadInput(f"{text} holds no checkpoints. Give a run's folder, its checkpoints' folder or their URL.")


def _behind_url(url: str, options: Mapping[str, Any]) -> list[Place]:
    from dynaxx.checkpoints.remote import RemotePlace  # fsspec is imported for URLs alone

    there = RemotePlace(url, **options)
    return [there, RemotePlace(f"{there.name}/checkpoints", **options)]


def find(place: Place, at: int | str | None) -> tuple[CheckpointInfo, Place]:
    """A checkpoint, among the full ones or else among the archived ones.

    Args:
        place: Where the full ones lie.
        at: Its step, id or name; None: the latest.

    Returns:
        The checkpoint, and the place where it lies.

    Raises:
        BadInput: There is none such; the steps of the full ones are named.
    """
    try:
        return place.find(at), place
    except BadInput:
        cold = [info for info in place.archive.list() if at in (None, info.step, info.id, original(info).id)]
        if not cold:
            raise
        return cold[-1], place.archive
