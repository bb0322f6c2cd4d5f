"""The folder of a run's checkpoints: each is written aside, synced, renamed into place, and verified before it is used.

```
checkpoints/
  .staging/…                       saves in progress, and what killed processes left of theirs
  0000001000-000003-9f3c12ab/      step, number of the save, chance: never reused, never changed
    tensors.safetensors            every tensor, by its path in the state
    state.json                     the tree that refers to them
    manifest.json                  written last: sizes and checksums of everything, itself included
  quarantine/…                     corrupted ones, moved here when the latest was asked for
  trash/…                          on their way out
```
"""

import errno
import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from dynaxx.checkpoints.codec import decode, encode
from dynaxx.checkpoints.durable import plain_size, sync_folder, write_durably
from dynaxx.checkpoints.manifest import (
    NAME,
    SIZE_CAP,
    STATE,
    TENSORS,
    CheckpointInfo,
    Manifest,
    dump_manifest,
    load_manifest,
    read_capped,
)
from dynaxx.checkpoints.staging import staging_name, sweep
from dynaxx.checkpoints.tensorfile import FileEntry, file_entry, read_tensors, write_tensors
from dynaxx.errors import BadInput, CorruptData, DynaxxWarning, NotSaved

_FOLDER = re.compile(r"\d{10,}-\d{6,}-[0-9a-f]{8}")


class CheckpointStore:
    """Checkpoints of one run.

    Args:
        folder: `<run>/checkpoints`; made by the first save.

    Example:
        >>> import tempfile, torch
        >>> store = CheckpointStore(Path(tempfile.mkdtemp()) / "checkpoints")
        >>> info = store.save(10, {"weight": torch.ones(2), "lr": 0.1})
        >>> store.load()[0]
        {'weight': tensor([1., 1.]), 'lr': 0.1}
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        self._verified: set[str] = set()

    def save(self, step: int, state: Mapping[str, Any], *, facts: Mapping[str, Any] | None = None) -> CheckpointInfo:
        """Commit a checkpoint: when this returns, it survives a kill and the loss of power.

        Args:
            step: Completed optimizer steps.
            state: Anything that `encode` takes; it must not change meanwhile.
            facts: Numbers, strings and lists or dicts of them, kept in the manifest.

        Returns:
            The checkpoint.

        Raises:
            BadInput: The step is negative, or the state or the facts cannot be stored.
            NotApplicable: The state holds shards.
            NotSaved: The disk is full, read-only or broken.
        """
        if type(step) is not int or step < 0:
            raise BadInput(f"save(step=...) must be a whole number of completed steps, at least 0. Got {step!r}.")
        tensors, tree = encode(dict(state))
        text = json.dumps(tree, separators=(",", ":")).encode()
        if len(text) > SIZE_CAP:
            raise BadInput(
                f"save(state=...): what is not tensors takes {len(text)} bytes; at most {SIZE_CAP} are stored. "
                "Put long lists of numbers into tensors or arrays."
            )
        try:
            return self._commit(step, tensors, text, dict(facts or {}))
        except OSError as error:
            raise NotSaved(
                error.errno,
                f"The checkpoint of step {step} was not saved ({error.strerror}); earlier ones are intact. "
                "Free space or make the folder writable; the next save tries again",
                str(self.folder),
            ) from error

    def list(self) -> tuple[CheckpointInfo, ...]:
        """The committed checkpoints by step, then by save, oldest first; no clock is asked.

        Returns:
            Those whose manifest is as it was written; others are named in a `DynaxxWarning`.
        """
        infos: list[CheckpointInfo] = []
        for name in _committed(self.folder):
            try:
                with _unreadable_is_corrupt(self.folder / name):
                    infos.append(load_manifest(self.folder / name).info(self.folder / name))
            except (CorruptData, BadInput) as error:
                if (self.folder / name).exists():  # else: pruned by another process meanwhile
                    warnings.warn(f"A checkpoint is not listed: {error}", DynaxxWarning, stacklevel=2)
        return tuple(infos)

    def load(self, which: CheckpointInfo | int | None = None) -> tuple[dict[str, Any], CheckpointInfo]:
        """Verify and read a checkpoint; nothing of it is handed out before every byte is checked.

        Args:
            which: A checkpoint, a step (its last save), or None: the latest that is valid. Then corrupted ones are
                moved to `quarantine/`, named in a `DynaxxWarning` and in the info that is returned.

        Returns:
            The state, its tensors on the CPU and the caller's own, and the checkpoint.

        Raises:
            BadInput: There is no such checkpoint, or a later version of Dynaxx wrote it.
            CorruptData: The one asked for is corrupted, or all are.
        """
        if which is not None:
            return self._read(self._path(which))
        passed_over: list[str] = []
        for name in reversed(_committed(self.folder)):
            try:
                state, info = self._read(self.folder / name)
            except CorruptData as error:
                if (self.folder / name).exists():
                    passed_over.append(name)
                    message = f"A corrupted checkpoint is passed over and {self._set_aside(name)}: {error}"
                    warnings.warn(message, DynaxxWarning, stacklevel=2)
            else:
                return state, replace(info, passed_over=tuple(passed_over))
        if passed_over:
            raise CorruptData(f"Every checkpoint in {self.folder} is corrupted: {', '.join(passed_over)}.")
        raise BadInput(f"load(): {self.folder} holds no checkpoint. Was the run's folder given, and did it save?")

    def verify(self, which: CheckpointInfo | int, deep: bool = True) -> None:
        """Check a checkpoint against its manifest.

        Args:
            which: A checkpoint, or a step (its last save).
            deep: Read and hash every byte; else the manifest and the sizes only.

        Raises:
            BadInput: There is no such checkpoint.
            CorruptData: It is corrupted; the message names the file, and the tensor where it can.
        """
        self._check(self._path(which), deep)

    def prune(self, keep: int = 3) -> tuple[str, ...]:
        """Delete all but the latest checkpoints, what killed processes left of theirs, and the trash.

        Nothing is deleted unless one of those kept has passed a deep check (once per store and checkpoint, so that
        pruning after every save reads only about one in `keep` of them again).

        Args:
            keep: How many to keep.

        Returns:
            The names of those deleted.

        Raises:
            BadInput: `keep` is below 1.
        """
        if keep < 1:
            raise BadInput(f"prune(keep=...) must keep at least 1 checkpoint. Got {keep}.")
        names = _committed(self.folder)
        old, newest_first = names[:-keep], names[-keep:][::-1]
        checked_first = sorted(newest_first, key=self._verified.__contains__, reverse=True)
        if old and not any(map(self._is_sound, checked_first)):
            message = f"Nothing is pruned from {self.folder}: none of the latest {keep} checkpoints is valid."
            warnings.warn(message, DynaxxWarning, stacklevel=2)
            old = []
        deleted = tuple(filter(self._trashed, old))
        sweep(self.folder / ".staging", self.folder / "trash")
        return deleted

    def _commit(self, step: int, tensors: Mapping[str, Tensor], text: bytes, facts: dict[str, Any]) -> CheckpointInfo:
        sweep(self.folder / ".staging", self.folder / "trash")
        identity = f"{self._next_number():06d}-{secrets.token_hex(4)}"
        path = self.folder / f"{step:010d}-{identity}"
        staging = self._made(".staging") / staging_name(path.name)
        try:
            staging.mkdir()
            tensor_file, entries = write_tensors(staging / TENSORS, tensors)
            manifest = Manifest(
                step=step,
                id=identity,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                files={TENSORS: tensor_file, STATE: _write(staging / STATE, text)},
                tensors=entries,
                facts=facts,
            )
            _write(staging / NAME, dump_manifest(manifest))
            sync_folder(staging)
            staging.rename(path)
            sync_folder(self.folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)  # it is there still only if something failed
        return manifest.info(path)

    def _check(self, path: Path, deep: bool) -> None:
        with _unreadable_is_corrupt(path):
            manifest = load_manifest(path)
            for name, entry in manifest.files.items():
                if (size := plain_size(path / name)) != entry.size:
                    raise CorruptData(f"{path / name} has {size} bytes; {entry.size} were written.")
            if deep:
                read_capped(path / STATE, manifest.files[STATE])
                for _ in read_tensors(path / TENSORS, manifest.files[TENSORS], manifest.tensors):
                    pass
                self._verified.add(path.name)

    def _read(self, path: Path) -> tuple[dict[str, Any], CheckpointInfo]:
        with _unreadable_is_corrupt(path):
            manifest = load_manifest(path)
            text = read_capped(path / STATE, manifest.files[STATE])
            tensors = dict(read_tensors(path / TENSORS, manifest.files[TENSORS], manifest.tensors))
        self._verified.add(path.name)
        try:
            tree = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CorruptData(f"{path / STATE} does not follow the format: {error}.") from error
        return decode(tensors, tree), manifest.info(path)

    def _is_sound(self, name: str) -> bool:
        try:
            self._check(self.folder / name, deep=name not in self._verified)
        except (CorruptData, BadInput):
            return False
        return True

    def _path(self, which: CheckpointInfo | int) -> Path:
        if isinstance(which, CheckpointInfo):
            return which.path
        names = _committed(self.folder)
        found = [name for name in names if _place(name)[0] == which]
        if not found:
            steps = ", ".join(str(_place(name)[0]) for name in names) or "none"
            raise BadInput(f"No checkpoint of step {which} is in {self.folder}. Steps there: {steps}.")
        return self.folder / found[-1]

    def _next_number(self) -> int:
        """One more than any save before, so that the order of saves does not hang on a clock."""
        folders = (self.folder, self.folder / "quarantine", self.folder / "trash")
        return 1 + max((_place(name)[1] for folder in folders for name in _committed(folder)), default=0)

    def _made(self, name: str) -> Path:
        """A sub-folder, made durably if it is not there."""
        folder = self.folder / name
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self.folder.parent)
            sync_folder(self.folder)
        return folder

    def _trashed(self, name: str) -> bool:
        """One rename takes a checkpoint out of sight whole: a kill during its deletion leaves only trash."""
        try:
            (self.folder / name).rename(self._made("trash") / name)
        except OSError as error:
            if error.errno != errno.ENOENT:  # else: another process was faster
                message = f"{self.folder / name} cannot be pruned: {error.strerror}."
                warnings.warn(message, DynaxxWarning, stacklevel=3)
            return False
        return True

    def _set_aside(self, name: str) -> str:
        try:
            (self.folder / name).rename(self._made("quarantine") / name)
        except OSError as error:
            return f"could not be moved to quarantine ({error.strerror})"
        return "moved to quarantine"


def _committed(folder: Path) -> list[str]:
    """Names of the checkpoints in a folder, oldest first."""
    return sorted(filter(_FOLDER.fullmatch, os.listdir(folder)), key=_place) if folder.is_dir() else []


def _place(name: str) -> tuple[int, int, str]:
    """Step, number of the save, chance: what checkpoints are ordered by."""
    step, number, chance = name.split("-")
    return int(step), int(number), chance


def _write(path: Path, data: bytes) -> FileEntry:
    return write_durably(path, [data], lambda: file_entry(data))


@contextmanager
def _unreadable_is_corrupt(path: Path) -> Generator[None]:
    """A medium that cannot be read any more is treated like one that reads other bytes."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EIO, errno.ENOENT):
            raise
        raise CorruptData(f"{path} cannot be read: {error}.") from error
