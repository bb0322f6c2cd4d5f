"""The manifest of a checkpoint, its commit record: what it holds, with a checksum for every byte, its own included."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from dynaxx.checkpoints.codec import decode, encode
from dynaxx.checkpoints.durable import digest, plain_size
from dynaxx.checkpoints.tensorfile import FileEntry, TensorEntry
from dynaxx.errors import BadInput, CorruptData

FORMAT = 1
"""Version of the layout and of the state tree."""
NAME = "manifest.json"
STATE = "state.json"
TENSORS = "tensors.safetensors"
SIZE_CAP = 1 << 28
"""Largest JSON file that is written or read: 256 MiB."""
_SEAL = ',"xxh3_128":"{}"}}\n'
_SEAL_SIZE = len(_SEAL.format("0" * 32))


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
        passed_over: Names of newer checkpoints that were corrupted when this one was loaded instead.
    """

    step: int
    id: str
    path: Path
    created: str
    size: int
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of a manifest.

    Args:
        step: Completed optimizer steps.
        id: The checkpoint's id.
        created: When it was saved, UTC, ISO 8601.
        files: File name → size and digest.
        tensors: Name of a tensor in the tensor file → dtype, shape and digest.
        facts: What the caller of `save` said about it.
    """

    step: int
    id: str
    created: str
    files: Mapping[str, FileEntry]
    tensors: Mapping[str, TensorEntry]
    facts: Mapping[str, Any]

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
        return CheckpointInfo(step=self.step, id=self.id, path=path, created=self.created, size=size, facts=self.facts)


def dump_manifest(manifest: Manifest) -> bytes:
    """The bytes of a manifest: JSON whose last entry is the digest of all bytes before it.

    Args:
        manifest: The manifest.

    Returns:
        The bytes.

    Raises:
        BadInput: The facts hold something that JSON cannot.
    """
    tensors, facts = encode(dict(manifest.facts), "facts")
    if tensors:
        raise BadInput(f"save(facts=...) must hold no tensors. Got {', '.join(tensors)}: put tensors into the state.")
    body = {
        "format": FORMAT,
        "step": manifest.step,
        "id": manifest.id,
        "created": manifest.created,
        "files": {name: {"bytes": entry.size, "xxh3_128": entry.digest} for name, entry in manifest.files.items()},
        "tensors": {
            name: {"dtype": entry.dtype, "shape": list(entry.shape), "xxh3_128": entry.digest}
            for name, entry in manifest.tensors.items()
        },
        "facts": facts,
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
    path = folder / NAME
    data = read_capped(path)
    text, seal = data[:-_SEAL_SIZE], data[-_SEAL_SIZE:]
    if seal != _SEAL.format(digest(text)).encode():
        raise CorruptData(f"{path}: the bytes are not those that were written.")
    try:
        body = cast("dict[str, Any]", json.loads(data))
        version, manifest = body["format"], None
        if version == FORMAT:
            manifest = _parsed(body)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CorruptData(f"{path} does not follow the format: {type(error).__name__}: {error}.") from error
    if manifest is None:
        raise BadInput(f"{path} is of format {version}; this version of Dynaxx reads format {FORMAT}. Update Dynaxx.")
    if manifest.folder != folder.name:
        raise CorruptData(f"{path} belongs to the checkpoint {manifest.folder}, not to {folder.name}.")
    if set(manifest.files) != {STATE, TENSORS}:  # no other name is ever opened
        raise CorruptData(f"{path} must list {STATE} and {TENSORS} alone. It lists: {', '.join(manifest.files)}.")
    return manifest


def _parsed(body: dict[str, Any]) -> Manifest:
    return Manifest(
        step=int(body["step"]),
        id=body["id"],
        created=body["created"],
        files={n: FileEntry(size=e["bytes"], digest=e["xxh3_128"]) for n, e in body["files"].items()},
        tensors={
            n: TensorEntry(dtype=e["dtype"], shape=tuple(e["shape"]), digest=e["xxh3_128"])
            for n, e in body["tensors"].items()
        },
        facts=decode({}, body["facts"]),
    )


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
