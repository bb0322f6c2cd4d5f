"""The commit of a checkpoint: written aside, synced, and published by one rename, or gone without a trace."""

import errno
import json
import secrets
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from dynaxx.checkpoints.codec import decode, encode
from dynaxx.checkpoints.durable import write_durably
from dynaxx.checkpoints.folders import STAGING, TRASH, made, next_number
from dynaxx.checkpoints.manifest import NAME, SIZE_CAP, STATE, CheckpointInfo, Manifest, Origin, dump_manifest
from dynaxx.checkpoints.staging import staging_name, sweep
from dynaxx.checkpoints.tensorfile import FileEntry, TensorEntry, file_entry
from dynaxx.errors import BadInput, NotSaved
from dynaxx.runlog.disk import sync_folder

Written = Mapping[str, tuple[FileEntry, Mapping[str, TensorEntry]]]
"""Tensor file → its entry and its tensors' entries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a checkpoint says besides its tensors.

    Args:
        step: Completed optimizer steps.
        tree: The bytes of the state's tree.
        facts: What the caller of `save` said about it.
        origin: The checkpoint that the training had last gone back to, if it had.
    """

    step: int
    tree: bytes
    facts: Mapping[str, Any]
    origin: Origin | None


def encoded(
    step: int,
    state: Mapping[str, Any],
    facts: Mapping[str, Any] | None,
    origin: Origin | None,
    *,
    host: bool = True,
    shards: bool = False,
) -> tuple[dict[str, Tensor], Content]:
    """What is asked to be saved, checked and taken apart; of all but the tensors it is a copy.

    Args:
        step: Completed optimizer steps.
        state: The state.
        facts: What to say about it.
        origin: The checkpoint that the training had last gone back to, if it had.
        host: Bring tensors to the CPU.
        shards: Take DTensors.

    Returns:
        Name → tensor, and the rest.

    Raises:
        BadInput: The step is negative, or the state or the facts cannot be stored.
        NotApplicable: The state holds shards, and `shards` is off.
    """
    if type(step) is not int or step < 0:
        raise BadInput(f"save(step=...) must be a whole number of completed steps, at least 0. Got {step!r}.")
    tensors, tree = encode(dict(state), host=host, shards=shards)
    text = json.dumps(tree, separators=(",", ":")).encode()
    if len(text) > SIZE_CAP:
        raise BadInput(
            f"save(state=...): what is not tensors takes {len(text)} bytes; at most {SIZE_CAP} are stored. "
            "Put long lists of numbers into tensors or arrays."
        )
    stray, said = encode(dict(facts or {}), "facts")
    if stray:
        raise BadInput(f"save(facts=...) must hold no tensors. Got {', '.join(stray)}: put tensors into the state.")
    return tensors, Content(step=step, tree=text, facts=decode({}, said), origin=origin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A checkpoint being written, which nobody sees.

    Args:
        path: Where it will be.
        staging: Where its files go meanwhile, on the same file system.
    """

    path: Path
    staging: Path

    def publish(self, content: Content, written: Written) -> CheckpointInfo:
        """Seal it with its manifest and rename it into place.

        Args:
            content: What it says.
            written: Its tensor files, durable already.

        Returns:
            The checkpoint: when this returns, it survives a kill and the loss of power.

        Raises:
            OSError: The disk is full, read-only or broken.
        """
        manifest = Manifest(
            step=content.step,
            id=self.path.name.partition("-")[2],
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            files={
                **{file: entry for file, (entry, _) in written.items()},
                STATE: _write(self.staging / STATE, content.tree),
            },
            tensors={file: entries for file, (_, entries) in written.items()},
            facts=content.facts,
            origin=content.origin,
        )
        _write(self.staging / NAME, dump_manifest(manifest))
        sync_folder(self.staging)
        self.staging.rename(self.path)
        sync_folder(self.path.parent)
        return manifest.info(self.path)

    def discard(self) -> None:
        """Delete what was written; nothing happens where it was published."""
        shutil.rmtree(self.staging, ignore_errors=True)


def begin(folder: Path, step: int) -> Draft:
    """Make the staging folder of a checkpoint, once what dead processes left is swept.

    Args:
        folder: The store.
        step: Completed optimizer steps.

    Returns:
        The draft.

    Raises:
        OSError: The disk is full, read-only or broken.
    """
    sweep(folder / STAGING, folder / TRASH)
    path = folder / f"{step:010d}-{next_number(folder):06d}-{secrets.token_hex(4)}"
    staging = made(folder, STAGING) / staging_name(path.name)
    staging.mkdir()
    return Draft(path=path, staging=staging)


def probe(folder: Path) -> None:
    """Do once, with a few bytes, what every save does: create, sync, rename, delete.

    Args:
        folder: The store.

    Raises:
        OSError: One of it cannot be done.
    """
    draft = begin(folder, 0)
    try:
        _write(draft.staging / NAME, b"probe")
        sync_folder(draft.staging)
        gone = made(folder, TRASH) / draft.path.name
        draft.staging.rename(gone)
        sync_folder(folder)
        shutil.rmtree(gone, ignore_errors=True)
        if gone.exists():
            raise OSError(errno.EACCES, "what was written cannot be deleted", str(gone))
    finally:
        draft.discard()


@contextmanager
def refusals(folder: Path, what: str) -> Generator[None]:
    """What the system refuses, as the error that callers catch.

    Args:
        folder: The store.
        what: What then has not been done, as the beginning of a sentence.

    Yields:
        Nothing.

    Raises:
        NotSaved: The disk is full, read-only or broken, or the process has no file descriptor left.
    """
    try:
        yield
    except NotSaved:
        raise
    except OSError as error:
        raise NotSaved(
            error.errno,
            f"{what} ({error.strerror}); earlier ones are intact. "
            "Free space or make the folder writable; the next save tries again",
            str(folder),
        ) from error


def _write(path: Path, data: bytes) -> FileEntry:
    return write_durably(path, [data], lambda: file_entry(data))
