"""Where checkpoints lie: what retention, tiers and health ask of a local folder and of an object store alike.

```
<place>/
  0000001000-000003-9f3c12ab/…     checkpoints, the same files everywhere: any copying tool moves them
  archive/…                        a place of its own, whose checkpoints hold weights only
  notes/health/000003-9f3c12ab.json    what is said later of a checkpoint that never changes
  notes/pins/…  notes/branches/…
```
"""

import os
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynaxx.checkpoints.folders import STAGING, TRASH, left_behind, made
from dynaxx.checkpoints.manifest import NAME, CheckpointInfo, Origin, load_manifest
from dynaxx.checkpoints.staging import staging_name, sweep
from dynaxx.checkpoints.store import CheckpointStore
from dynaxx.errors import BadInput, CorruptData, DynaxxWarning
from dynaxx.runlog.disk import replace_file, sync_folder
from dynaxx.runlog.sealed import seal, unseal

NOTES = "notes"
ARCHIVE = "archive"


class Place(ABC):
    """A folder of checkpoints, here or far away.

    Args:
        name: Its path or URL, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    @abstractmethod
    def archive(self) -> "Place":
        """Where its archived checkpoints lie."""

    @abstractmethod
    def list(self) -> tuple[CheckpointInfo, ...]:
        """The committed checkpoints by step, then by save, oldest first; what is damaged is named in a warning."""

    @abstractmethod
    def load(
        self, which: CheckpointInfo | int | None = None, *, only: Collection[str] | None = None
    ) -> tuple[dict[str, Any], CheckpointInfo]:
        """Verify and read a checkpoint.

        Args:
            which: A checkpoint, a step (its last save), or None: the latest that is valid, others being passed over.
            only: Keys of the state to read; None: all.

        Returns:
            The state, and the checkpoint.
        """

    @abstractmethod
    def save(self, step: int, state: Mapping[str, Any], *, facts: Mapping[str, Any] | None = None) -> CheckpointInfo:
        """Commit a checkpoint.

        Args:
            step: Completed optimizer steps.
            state: As `CheckpointStore.save` takes it.
            facts: Likewise.

        Returns:
            The checkpoint.
        """

    @abstractmethod
    def verify(self, which: CheckpointInfo, deep: bool = True) -> None:
        """Check a checkpoint against its manifest; `CorruptData` says what is wrong.

        Args:
            which: The checkpoint.
            deep: Read and hash every byte; else the manifest and the sizes only.
        """

    @abstractmethod
    def fetch(self, which: CheckpointInfo, into: Path) -> Path:
        """Copy the files of a checkpoint, as they are, into a local folder.

        Args:
            which: The checkpoint.
            into: The folder that gets a folder of the checkpoint's name.

        Returns:
            That folder; it is verified by who uses it.
        """

    @abstractmethod
    def remove_all(self, infos: Sequence[CheckpointInfo]) -> frozenset[str]:
        """Take checkpoints out of sight whole, then delete them: a kill meanwhile leaves none that is half there.

        Args:
            infos: The checkpoints.

        Returns:
            Ids of those that are out of sight; why others are not is a warning.
        """

    @abstractmethod
    def sweep(self) -> tuple[str, ...]:
        """Delete what killed processes left half written or half deleted.

        Returns:
            Names of the checkpoints of which nobody saw anything, where they are known.
        """

    @abstractmethod
    def note_kinds(self) -> Sequence[str]:
        """The kinds of notes that there are."""

    @abstractmethod
    def read_notes(self, kind: str) -> dict[str, bytes]:
        """The notes of a kind as they were written.

        Args:
            kind: "health", "pins", "branches" or what else is said of checkpoints.

        Returns:
            Name → bytes.
        """

    @abstractmethod
    def write_note(self, kind: str, name: str, data: bytes | None) -> None:
        """Write a note whole, in the place of an earlier one of that name; None takes it away.

        Args:
            kind: As in `read_notes`.
            name: The note's name.
            data: Its bytes.
        """

    def remove(self, which: CheckpointInfo) -> bool:
        """As `remove_all`, of one.

        Args:
            which: The checkpoint.

        Returns:
            Whether it is out of sight.
        """
        return which.id in self.remove_all([which])

    def note(self, kind: str, name: str, record: Mapping[str, Any] | None) -> None:
        """Say something of a checkpoint, sealed by a checksum.

        Args:
            kind: As in `read_notes`.
            name: A checkpoint's id, or the note's own name.
            record: What is said; None takes back what was.
        """
        self.write_note(kind, name, None if record is None else seal(record))

    def notes(self, kind: str) -> dict[str, dict[str, Any]]:
        """What was said; notes that are damaged are named in a `DynaxxWarning` and left out.

        Args:
            kind: As in `read_notes`.

        Returns:
            Name → record, by name.
        """
        found: dict[str, dict[str, Any]] = {}
        for name, data in sorted(self.read_notes(kind).items()):
            try:
                record, intact = unseal(data)
            except CorruptData:
                record, intact = {}, False
            if intact:
                found[name] = record
            else:
                message = f"{self.name}/{NOTES}/{kind}/{name}.json is damaged and not heeded. Say it again."
                warnings.warn(message, DynaxxWarning, stacklevel=2)
        return found

    @abstractmethod
    def is_sound(self, which: CheckpointInfo) -> bool:
        """Whether every byte of a checkpoint is as it was written; found out once per place and checkpoint.

        Args:
            which: The checkpoint.

        Returns:
            True if it is.
        """

    def find(self, which: CheckpointInfo | int | str | None) -> CheckpointInfo:
        """The checkpoint that a step, an id or a folder's name stands for.

        Args:
            which: A step (its last save), an id, a folder's name, or None: the latest.

        Returns:
            The checkpoint.

        Raises:
            BadInput: There is none such; those there are named.
        """
        if isinstance(which, CheckpointInfo):
            return which
        infos = self.list()
        found = [i for i in infos if which is None or which in (i.step, i.id, i.path.name)]
        if not found:
            there = ", ".join(str(info.step) for info in infos) or "none"
            said = "checkpoint" if which is None else f"checkpoint {which!r}"
            raise BadInput(f"No {said} is in {self.name}. Steps there: {there}.")
        return found[-1]


class LocalPlace(Place):
    """A local folder of checkpoints.

    Args:
        store: The store, or its folder.

    Example:
        >>> import tempfile, torch
        >>> place = LocalPlace(Path(tempfile.mkdtemp()) / "checkpoints")
        >>> info = place.save(10, {"weight": torch.ones(2)})
        >>> place.is_sound(info), place.remove(info), place.list()
        (True, True, ())
    """

    def __init__(self, store: CheckpointStore | str | Path) -> None:
        self.store = store if isinstance(store, CheckpointStore) else CheckpointStore(store)
        self.folder = self.store.folder
        super().__init__(str(self.folder))

    @property
    def archive(self) -> "LocalPlace":
        """Where its archived checkpoints lie."""
        return LocalPlace(self.folder / ARCHIVE)

    def list(self) -> tuple[CheckpointInfo, ...]:
        """As in `CheckpointStore`."""
        return self.store.list()

    def load(
        self, which: CheckpointInfo | int | None = None, *, only: Collection[str] | None = None
    ) -> tuple[dict[str, Any], CheckpointInfo]:
        """As in `CheckpointStore`."""
        return self.store.load(which, only=only)

    def save(self, step: int, state: Mapping[str, Any], *, facts: Mapping[str, Any] | None = None) -> CheckpointInfo:
        """As in `CheckpointStore`."""
        return self.store.save(step, state, facts=facts)

    def verify(self, which: CheckpointInfo, deep: bool = True) -> None:
        """As in `CheckpointStore`."""
        self.store.verify(which, deep)

    def is_sound(self, which: CheckpointInfo) -> bool:
        """As in `CheckpointStore`."""
        return self.store.is_sound(which)

    def fetch(self, which: CheckpointInfo, into: Path) -> Path:
        """Copy the files that the manifest lists, and the manifest last."""
        target = into / which.path.name
        for file in (*load_manifest(which.path).files, NAME):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(which.path / file, target / file)
        return target

    def adopt(self, source: Place, which: CheckpointInfo) -> CheckpointInfo:
        """Commit a copy of a checkpoint of another place, under its own name, every byte checked.

        Args:
            source: Where it lies.
            which: The checkpoint.

        Returns:
            The copy.

        Raises:
            CorruptData: It is damaged; nothing is committed.
        """
        name = which.path.name
        staging = made(self.folder, STAGING) / staging_name(name)
        staging.mkdir()
        try:
            source.fetch(which, staging)
            CheckpointStore(staging).verify(replace(which, path=staging / name))
            _sync_all(staging / name)
            (staging / name).rename(self.folder / name)
            sync_folder(self.folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return replace(which, path=self.folder / name)

    def remove_all(self, infos: Sequence[CheckpointInfo]) -> frozenset[str]:
        """One rename each into the trash, then the deletion; what a kill leaves in the trash the store sweeps."""
        self.store.remove(infos)
        return frozenset(info.id for info in infos if not info.path.exists())

    def sweep(self) -> tuple[str, ...]:
        """As in every save."""
        sweep(self.folder / STAGING, self.folder / TRASH)
        return ()

    def note_kinds(self) -> Sequence[str]:
        """One folder each."""
        return sorted(path.name for path in (self.folder / NOTES).glob("*") if path.is_dir())

    def read_notes(self, kind: str) -> dict[str, bytes]:
        """Every file of the kind's folder."""
        return {path.stem: path.read_bytes() for path in (self.folder / NOTES / kind).glob("[!.]*.json")}

    def write_note(self, kind: str, name: str, data: bytes | None) -> None:
        """By an atomic rename that survives a loss of power."""
        path = self.folder / NOTES / kind / f"{name}.json"
        if data is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, data)


def original(info: CheckpointInfo) -> CheckpointInfo:
    """An archived checkpoint as the one it was made of, which is what policies and lineage know; others as they are.

    Args:
        info: The checkpoint.

    Returns:
        The same, under the id, name and origin of the full one.
    """
    if "of" not in info.facts:
        return info
    origin = info.facts.get("origin")
    return replace(
        info,
        id=info.facts["of"],
        path=info.path.parent.parent / f"{info.step:010d}-{info.facts['of']}",
        origin=None if origin is None else Origin(**origin),
    )


def behind(infos: Sequence[CheckpointInfo]) -> set[str]:
    """The checkpoints that a training has gone back past and does not build on any more.

    Args:
        infos: The checkpoints of one run.

    Returns:
        Names of their folders.
    """
    return left_behind([info.path.name for info in infos], [info.origin for info in infos])


def _sync_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)
    sync_folder(folder.parent)
