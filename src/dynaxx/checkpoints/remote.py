"""Checkpoints on an object store, or on any file system that fsspec reaches: committed without a rename.

The data objects go first and `manifest.json` last, exclusively where the store can: a checkpoint without its manifest
does not exist, to anybody. Taking one out of sight begins with its manifest, so that a kill meanwhile leaves what an
upload that was killed leaves: objects that nobody sees, which are swept after a day.
"""

import errno
import shutil
import tempfile
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from dynaxx.checkpoints.bucket import WAITS, Bucket
from dynaxx.checkpoints.folders import FOLDER, place
from dynaxx.checkpoints.manifest import NAME, CheckpointInfo, Manifest, dump_manifest, load_manifest, parse_manifest
from dynaxx.checkpoints.places import ARCHIVE, NOTES, Place, behind
from dynaxx.checkpoints.store import CheckpointStore
from dynaxx.errors import BadInput, CorruptData, DynaxxWarning, NotSaved

STALE = timedelta(days=1)
"""Age of objects without a manifest at which they count as left behind; no upload of one checkpoint takes a day."""


class RemotePlace(Place):
    """A folder of checkpoints behind a URL.

    Args:
        url: As fsspec takes it ("s3://bucket/run/checkpoints", "memory://run").
        waits: Seconds between tries of a failed request; one more try than there are numbers.
        options: What the file system takes ("endpoint_url", "anon").

    Raises:
        BadInput: The URL cannot be opened: an unknown protocol, or a package that is not installed.

    Example:
        >>> import torch
        >>> there = RemotePlace("memory://doctest/checkpoints")
        >>> info = there.save(10, {"weight": torch.ones(2)})
        >>> there.load()[0]
        {'weight': tensor([1., 1.])}
    """

    def __init__(self, url: str, *, waits: Sequence[float] = WAITS, **options: Any) -> None:
        self._bucket = Bucket(url, waits, **options)
        super().__init__(self._bucket.url)
        self._manifests: dict[str, Manifest] = {}  # they never change: each is read once
        self._sound: set[str] = set()

    @property
    def archive(self) -> "RemotePlace":
        """Where its archived checkpoints lie."""
        return RemotePlace(f"{self.name}/{ARCHIVE}", waits=self._bucket.waits, **self._bucket.options)

    def list(self) -> tuple[CheckpointInfo, ...]:
        """The committed checkpoints: those whose manifest is there, and as it was written."""
        names = self._names()
        new = [name for name in names if name not in self._manifests]
        found = self._bucket.read_all([f"{name}/{NAME}" for name in new])
        for path, data in found.items():
            try:
                manifest = parse_manifest(data, Path(self.name) / Path(path).parent)
                self._manifests[manifest.folder] = manifest
            except (CorruptData, BadInput) as error:
                message = f"A checkpoint in {self.name} is not listed: {error}"
                warnings.warn(message, DynaxxWarning, stacklevel=2)
        infos = [self._info(self._manifests[name]) for name in names if name in self._manifests]
        past = behind(infos)
        return tuple(sorted(infos, key=lambda info: (info.path.name not in past, place(info.path.name))))

    def load(
        self, which: CheckpointInfo | int | None = None, *, only: Collection[str] | None = None
    ) -> tuple[dict[str, Any], CheckpointInfo]:
        """Download into a temporary folder, verify and read there."""
        if which is not None:
            return self._read(self.find(which), only)
        passed_over: list[str] = []
        for info in reversed(self.list()):
            try:
                state, found = self._read(info, only)
            except CorruptData as error:
                passed_over.append(info.path.name)
                warnings.warn(f"A corrupted checkpoint is passed over: {error}", DynaxxWarning, stacklevel=2)
            else:
                return state, replace(found, passed_over=tuple(passed_over))
        if passed_over:
            raise CorruptData(f"Every checkpoint in {self.name} is corrupted: {', '.join(passed_over)}.")
        raise BadInput(f"load(): {self.name} holds no checkpoint. Was the URL of its folder given?")

    def save(self, step: int, state: Mapping[str, Any], *, facts: Mapping[str, Any] | None = None) -> CheckpointInfo:
        """Save into a temporary folder, then upload; it waits for the network, which a `Mirror` does not."""
        with tempfile.TemporaryDirectory(prefix="dynaxx-") as folder:
            info = CheckpointStore(folder).save(step, state, facts=facts)
            number = 1 + max((place(name)[1] for name in self._names()), default=0)
            return self.upload(_renumbered(info.path, number))

    def upload(self, folder: Path) -> CheckpointInfo:
        """Commit a copy of a local checkpoint under its own name. One that is there already is not sent again.

        Args:
            folder: The checkpoint's folder.

        Returns:
            The copy: when this returns, everybody sees it whole.

        Raises:
            CorruptData: The local one is damaged.
            NotSaved: The store refuses it, or holds another one of that name; nothing became visible.
        """
        manifest, seal = load_manifest(folder), (folder / NAME).read_bytes()
        target = manifest.folder
        CheckpointStore(folder.parent).verify(
            manifest.info(folder)
        )  # what is damaged here must not count as kept there
        try:
            if self._bucket.read(f"{target}/{NAME}") != seal:
                for name in manifest.files:
                    self._bucket.upload(folder / name, f"{target}/{name}")
                self._bucket.create(f"{target}/{NAME}", seal)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not folder.exists():
                raise NotSaved(errno.ENOENT, "It was pruned before it was uploaded", str(folder)) from error
            raise NotSaved(
                error.errno or errno.EIO,
                f"The checkpoint of step {manifest.step} was not uploaded ({error}); earlier ones are intact. "
                "What was sent of it stays invisible; the next upload tries again",
                self.name,
            ) from error
        self._manifests[target] = manifest
        return self._info(manifest)

    def verify(self, which: CheckpointInfo, deep: bool = True) -> None:
        """Stream every byte through the checksum; nothing is kept on disk."""
        manifest, _ = self._manifest(which)
        for name, entry in manifest.files.items():
            path = f"{manifest.folder}/{name}"
            try:
                size, digest = self._bucket.measure(path, deep=deep)
            except FileNotFoundError as error:
                raise CorruptData(f"{self.name}/{path} is missing.") from error
            if size != entry.size or digest not in (None, entry.digest):
                raise CorruptData(f"{self.name}/{path}: the bytes are not those that were written.")

    def is_sound(self, which: CheckpointInfo) -> bool:
        """As `verify` says, the first time."""
        if which.id not in self._sound:
            try:
                self.verify(which)
            except (CorruptData, BadInput):
                return False
            self._sound.add(which.id)
        return True

    def fetch(self, which: CheckpointInfo, into: Path) -> Path:
        """Download the files that the manifest lists, and the manifest last."""
        manifest, seal = self._manifest(which)
        target = into / manifest.folder
        target.mkdir(parents=True)
        for name in manifest.files:
            try:
                self._bucket.download(f"{manifest.folder}/{name}", target / name)
            except FileNotFoundError as error:
                raise CorruptData(f"{self.name}/{manifest.folder}/{name} is missing.") from error
        (target / NAME).write_bytes(seal)
        return target

    def remove_all(self, infos: Sequence[CheckpointInfo]) -> frozenset[str]:
        """Of each the manifest first: from then on it does not exist; then the data."""
        gone: set[str] = set()
        for info in infos:
            name = info.path.name
            try:
                self._bucket.delete(f"{name}/{NAME}")
                self._manifests.pop(name, None)
                gone.add(info.id)
                self._bucket.delete(name, recursive=True)
            except OSError as error:
                what = "is out of sight, its data stay for a later sweep" if info.id in gone else "cannot be removed"
                warnings.warn(f"{self.name}/{name} {what}: {error}.", DynaxxWarning, stacklevel=2)
        return frozenset(gone)

    def sweep(self, older: timedelta = STALE) -> tuple[str, ...]:
        """Delete what uploads and deletions that were killed left behind.

        Args:
            older: Only objects of at least this age, by the store's clock, so that an upload in progress is left alone.

        Returns:
            Names of the folders that went.
        """
        gone: list[str] = []
        names = self._names()
        sealed = self._bucket.read_all([f"{name}/{NAME}" for name in names])
        for name in (name for name in names if f"{name}/{NAME}" not in sealed):
            age = self._bucket.age(name)
            if age is not None and age >= older:
                self._bucket.delete(name, recursive=True)
                gone.append(name)
        return tuple(gone)

    def note_kinds(self) -> Sequence[str]:
        """One folder each."""
        return self._bucket.names(NOTES)

    def read_notes(self, kind: str) -> dict[str, bytes]:
        """Every object of the kind's folder."""
        folder = f"{NOTES}/{kind}"
        names = [name for name in self._bucket.names(folder) if name.endswith(".json")]
        found = self._bucket.read_all([f"{folder}/{name}" for name in names])
        return {path.rpartition("/")[2].removesuffix(".json"): data for path, data in found.items()}

    def write_note(self, kind: str, name: str, data: bytes | None) -> None:
        """One PUT, which is atomic."""
        path = f"{NOTES}/{kind}/{name}.json"
        if data is None:
            self._bucket.delete(path)
        else:
            self._bucket.write(path, data)

    def _names(self) -> Sequence[str]:
        """Folders that look like checkpoints, committed or not."""
        return [name for name in self._bucket.names() if FOLDER.fullmatch(name)]

    def _manifest(self, which: CheckpointInfo) -> tuple[Manifest, bytes]:
        """The manifest and its bytes as they are now, not as they were when it was listed."""
        name = which.path.name
        data = self._bucket.read(f"{name}/{NAME}")
        if data is None:
            raise CorruptData(f"{self.name}/{name}/{NAME} is missing.")
        return parse_manifest(data, Path(self.name) / name), data

    def _read(self, info: CheckpointInfo, only: Collection[str] | None) -> tuple[dict[str, Any], CheckpointInfo]:
        with tempfile.TemporaryDirectory(prefix="dynaxx-") as folder:
            local = replace(info, path=self.fetch(info, Path(folder)))
            state, _ = CheckpointStore(folder).load(local, only=only)
        return state, info

    def _info(self, manifest: Manifest) -> CheckpointInfo:
        return manifest.info(Path(self._bucket.root) / manifest.folder)


def _renumbered(folder: Path, number: int) -> Path:
    """A fresh checkpoint under the number that it has in another place."""
    manifest = load_manifest(folder)
    manifest = replace(manifest, id=f"{number:06d}-{manifest.id.partition('-')[2]}")
    target = folder.with_name(manifest.folder)
    shutil.move(folder, target)
    (target / NAME).write_bytes(dump_manifest(manifest))
    return target
