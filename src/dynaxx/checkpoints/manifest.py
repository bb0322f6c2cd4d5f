"""The manifest of a checkpoint, its commit record: what it holds, with a checksum for every byte, its own included."""

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from dynaxx.checkpoints.codec import decode, encode
from dynaxx.checkpoints.durable import digest, plain_size
from dynaxx.checkpoints.finite import Word
from dynaxx.checkpoints.tensorfile import FileEntry, TensorEntry
from dynaxx.errors import BadInput, CorruptData

FORMAT = 2
"""Version of the layout and of the state tree; 1 knew one tensor file, and its table stood alone."""
NAME = "manifest.json"
STATE = "state.json"
TENSORS = "tensors.safetensors"
SHARD = re.compile(r"shard-\d{5}\.safetensors")
"""The name of one rank's tensor file, where the state was sharded."""
SIZE_CAP = 1 << 28
"""Largest JSON file that is written or read: 256 MiB."""
_SEAL = ',"xxh3_128":"{}"}}\n'
_SEAL_SIZE = len(_SEAL.format("0" * 32))
_NO_ORIGIN = b'"origin":null'


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a training went back to before it wrote a checkpoint, so that what it left behind is known.

    Args:
        checkpoint: Name of the folder of the checkpoint that it went on from.
        number: Number of the first save after that: what was saved before it, at a later step than the checkpoint's,
            was left behind.
    """

    checkpoint: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """What is known of a checkpoint without opening its tensors.

    Args:
        step: Completed optimizer steps.
        id: Tells apart the checkpoints of a run; a later save has the greater one, whatever the clock says.
        path: Its folder.
        created: When it was saved, UTC, ISO 8601.
        size: Bytes of its files, the manifest left out.
        facts: What the caller of `save` said about it.
        origin: The checkpoint that the training had last gone back to, if it had.
        passed_over: Names of newer checkpoints that were corrupted when this one was loaded instead.
        not_finite: Tensors that were not finite when they were written, by name → "nan" or "inf".
    """

    step: int
    id: str
    path: Path
    created: str
    size: int
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    origin: Origin | None = None
    passed_over: tuple[str, ...] = ()
    not_finite: Mapping[str, Word] = field(default_factory=dict[str, Word])


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of a manifest.

    Args:
        step: Completed optimizer steps.
        id: The checkpoint's id.
        created: When it was saved, UTC, ISO 8601.
        files: File name → size and digest.
        tensors: Tensor file → name of a tensor in it → dtype, shape and digest, and where it belongs if it is a piece.
        facts: What the caller of `save` said about it.
        origin: The checkpoint that the training had last gone back to, if it had.
    """

    step: int
    id: str
    created: str
    files: Mapping[str, FileEntry]
    tensors: Mapping[str, Mapping[str, TensorEntry]]
    facts: Mapping[str, Any]
    origin: Origin | None = None

    @property
    def folder(self) -> str:
        """The name of the checkpoint's folder."""
        return f"{self.step:010d}-{self.id}"

    def info(self, path: Path) -> CheckpointInfo:
        """What users see of it.

        Args:
            path: Where the checkpoint is.

        Returns:
            The info.
        """
        size = sum(entry.size for entry in self.files.values())
        return CheckpointInfo(
            step=self.step,
            id=self.id,
            path=path,
            created=self.created,
            size=size,
            facts=self.facts,
            origin=self.origin,
            not_finite=self._not_finite(),
        )

    def _not_finite(self) -> dict[str, Word]:
        """Of a tensor in pieces the worst of them."""
        found: dict[str, Word] = {}
        for table in self.tensors.values():
            for name, entry in table.items():
                if entry.not_finite and found.get(name) != "nan":
                    found[name] = entry.not_finite
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every whole tensor.

        Returns:
            Name in the state → shape: as far as its pieces reach.
        """
        reach: dict[str, tuple[int, ...]] = {}
        for table in self.tensors.values():
            for name, entry in table.items():
                ends = entry.ends
                reach[name] = tuple(map(max, ends, reach.get(name, ends)))
        return reach


def dump_manifest(manifest: Manifest) -> bytes:
    """The bytes of a manifest: JSON whose last entry is the digest of all bytes before it.

    Args:
        manifest: The manifest.

    Returns:
        The bytes.

    Raises:
        BadInput: The facts hold something that JSON cannot.
    """
    body = {
        "format": FORMAT,
        "step": manifest.step,
        "id": manifest.id,
        "created": manifest.created,
        "files": {name: {"bytes": entry.size, "xxh3_128": entry.digest} for name, entry in manifest.files.items()},
        "tensors": {
            file: {name: _dumped(entry) for name, entry in table.items()} for file, table in manifest.tensors.items()
        },
        "facts": encode(dict(manifest.facts), "facts")[1],
        "origin": None if manifest.origin is None else asdict(manifest.origin),
    }
    text = json.dumps(body, separators=(",", ":")).removesuffix("}").encode()
    return text + _SEAL.format(digest(text)).encode()


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint and check it against itself and against its folder's name.

    Args:
        folder: The checkpoint.

    Returns:
        The manifest.

    Raises:
        CorruptData: It is missing, was changed, or belongs to another checkpoint.
        BadInput: A later version of Dynaxx wrote it.
    """
    return parse_manifest(read_capped(folder / NAME), folder)


def parse_manifest(data: bytes, folder: Path) -> Manifest:
    """A manifest from its bytes, checked against itself and against its folder's name.

    Args:
        data: The bytes.
        folder: The checkpoint that they are of, which may lie anywhere.

    Returns:
        The manifest.

    Raises:
        CorruptData: It was changed, or belongs to another checkpoint.
        BadInput: A later version of Dynaxx wrote it.
    """
    path = folder / NAME
    text, seal = data[:-_SEAL_SIZE], data[-_SEAL_SIZE:]
    if seal != _SEAL.format(digest(text)).encode():
        raise CorruptData(f"{path}: the bytes are not those that were written.")
    try:
        body = cast("dict[str, Any]", json.loads(data))
        version, manifest = body["format"], None
        if version in (1, FORMAT):
            manifest = _parsed(body)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CorruptData(f"{path} does not follow the format: {type(error).__name__}: {error}.") from error
    if manifest is None:
        raise BadInput(f"{path} is of format {version}; this version of Dynaxx reads format {FORMAT}. Update Dynaxx.")
    if manifest.folder != folder.name:
        raise CorruptData(f"{path} belongs to the checkpoint {manifest.folder}, not to {folder.name}.")
    files, tables = set(manifest.files), set(manifest.tensors)
    whole, sharded = tables == {TENSORS}, all(map(SHARD.fullmatch, tables))
    if files != {STATE, *tables} or not (whole or sharded):  # no other name is ever opened
        raise CorruptData(f"{path} must list {STATE} and tensor files alone. It lists: {', '.join(sorted(files))}.")
    return manifest


def load_origin(folder: Path) -> Origin | None:
    """Where training had last gone back to, of a thousand checkpoints within a second.

    Args:
        folder: The checkpoint.

    Returns:
        The origin; where there is none, which the manifest's end tells, the rest of it is neither read nor checked.

    Raises:
        CorruptData: The manifest is missing, was changed, or belongs to another checkpoint.
        BadInput: A later version of Dynaxx wrote it.
    """
    path = folder / NAME
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(-len(_NO_ORIGIN) - _SEAL_SIZE, os.SEEK_END)
        if file.read(len(_NO_ORIGIN)) == _NO_ORIGIN:
            return None
    return load_manifest(folder).origin


def _parsed(body: dict[str, Any]) -> Manifest:
    tables = {TENSORS: body["tensors"]} if body["format"] == 1 else body["tensors"]
    origin = body.get("origin")
    return Manifest(
        step=int(body["step"]),
        id=body["id"],
        created=body["created"],
        files={n: FileEntry(size=e["bytes"], digest=e["xxh3_128"]) for n, e in body["files"].items()},
        tensors={file: {n: _entry(e) for n, e in table.items()} for file, table in tables.items()},
        facts=decode({}, body["facts"]),
        origin=None if origin is None else Origin(checkpoint=origin["checkpoint"], number=int(origin["number"])),
    )


def _entry(body: dict[str, Any]) -> TensorEntry:
    offsets = body.get("offsets")
    return TensorEntry(
        dtype=body["dtype"],
        shape=tuple(body["shape"]),
        digest=body["xxh3_128"],
        offsets=None if offsets is None else tuple(offsets),
        not_finite=body.get("not_finite", ""),
    )


def _dumped(entry: TensorEntry) -> dict[str, Any]:
    body: dict[str, Any] = {"dtype": entry.dtype, "shape": entry.shape, "xxh3_128": entry.digest}
    if entry.offsets is not None:
        body["offsets"] = entry.offsets
    return {**body, "not_finite": entry.not_finite} if entry.not_finite else body


def read_capped(path: Path, entry: FileEntry | None = None) -> bytes:
    """Read a small file as it was written.

    Args:
        path: The file.
        entry: Its size and digest; None: unknown.

    Returns:
        Its bytes.

    Raises:
        CorruptData: The file is missing, too large, or not the one that was written.
    """
    if (size := plain_size(path)) > SIZE_CAP:
        raise CorruptData(f"{path} has {size} bytes; no checkpoint's JSON has more than {SIZE_CAP}.")
    data = path.read_bytes()
    if entry is not None and (len(data) != entry.size or digest(data) != entry.digest):
        raise CorruptData(f"{path}: the bytes are not those that were written.")
    return data
