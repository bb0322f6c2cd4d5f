"""The tensor file of a checkpoint: the safetensors format, hashed as it is written and as it is read.

The format is public and small (length of the header, header as JSON, bytes of the tensors), and any safetensors reader
opens the file; pieces of sharded tensors say where they belong as torch.distributed.checkpoint's
HuggingFaceStorageWriter does, so that its reader opens them too. It is written here because the libraries neither sync
nor hash, and report a full disk as a serialisation error; it is read here so that the bytes that were verified are the
bytes that are used, at one pass.
"""

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch
import xxhash
from torch import Tensor

from dynaxx.checkpoints.durable import digest, plain_size, write_durably
from dynaxx.checkpoints.finite import Finiteness, Word
from dynaxx.errors import CorruptData

CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The format's names of dtypes."""
_DTYPES = {code: dtype for dtype, code in CODES.items()}
_LONGEST = 1 << 63
_CHUNK = 1 << 18  # hashed twice and looked at, and after a read, while it is in the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """What a manifest says of a file.

    Args:
        size: Its bytes.
        digest: Their xxh3_128.
    """

    size: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """What a manifest says of a tensor.

    Args:
        dtype: The format's name of its dtype ("BF16").
        shape: Its shape.
        digest: xxh3_128 of its bytes.
        offsets: Where in a sharded tensor this piece begins, by dimension; None: it is the whole tensor.
        not_finite: "nan" or "inf" where it holds such; empty where all of it is finite.
    """

    dtype: str
    shape: tuple[int, ...]
    digest: str
    offsets: tuple[int, ...] | None = None
    not_finite: Word = ""

    def __post_init__(self) -> None:
        offsets = (0,) * len(self.shape) if self.offsets is None else self.offsets
        if (
            self.dtype not in _DTYPES
            or len(offsets) != len(self.shape)
            or not all(type(n) is int and 0 <= n < _LONGEST for n in (*self.shape, *offsets))
            or self.not_finite not in get_args(Word)
        ):
            raise ValueError(
                f"a tensor of dtype {self.dtype!r}, shape {self.shape!r} and offsets {offsets!r}, "
                f"not finite: {self.not_finite!r}"
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """Its dtype."""
        return _DTYPES[self.dtype]

    @property
    def ends(self) -> tuple[int, ...]:
        """Where it ends in the whole tensor, by dimension."""
        return tuple(map(int.__add__, self.offsets or (0,) * len(self.shape), self.shape))

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], offsets: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[FileEntry, dict[str, TensorEntry]]:
    """Write a tensor file durably.

    Args:
        path: The file; it must not exist.
        tensors: Name → contiguous CPU tensor of a dtype in `CODES`.
        offsets: Name → where in a sharded tensor this piece begins; None: the tensors are whole.

    Returns:
        The file's entry and every tensor's for the manifest.

    Raises:
        OSError: The file could not be written.
    """
    entries = {
        name: TensorEntry(
            dtype=CODES[tensor.dtype],
            shape=tuple(tensor.shape),
            digest="",
            offsets=None if offsets is None else offsets[name],
        )
        for name, tensor in tensors.items()
    }
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    header = _header(entries)
    parts = {name: _bytes(tensors[name]) for name in _order(entries)}

    def look_at_all() -> tuple[str, dict[str, TensorEntry]]:
        whole = xxhash.xxh3_128(header)
        seen: dict[str, TensorEntry] = {}
        for name, part in parts.items():
            own, finiteness = xxhash.xxh3_128(), Finiteness(entries[name].dtype, min(_CHUNK, len(part)))
            for start in range(0, len(part), _CHUNK):
                chunk = part[start : start + _CHUNK]
                own.update(chunk)
                whole.update(chunk)
                finiteness.update(chunk)
            seen[name] = replace(entries[name], digest=own.hexdigest(), not_finite=finiteness.word)
        return whole.hexdigest(), seen

    whole, seen = write_durably(path, [header, *parts.values()], look_at_all)
    size = len(header) + sum(map(len, parts.values()))
    return FileEntry(size=size, digest=whole), {name: seen[name] for name in entries}


def read_tensors(
    path: Path, file: FileEntry, entries: Mapping[str, TensorEntry], only: Collection[str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Read and verify a tensor file, one tensor after the other; exhaust it before any tensor is used.

    Each tensor has memory of its own, aligned as torch aligns it: kernels may round differently on other alignments,
    and a small tensor does not keep the whole file in memory.

    Args:
        path: The file.
        file: Its entry in the manifest.
        entries: Its tensors' entries, in any order.
        only: Names to read, each verified by its own digest; the others' bytes are not read. None: all.

    Yields:
        Name and tensor, in the order of the file.

    Raises:
        CorruptData: The bytes are not those that were written; the message names the tensor.
    """
    check_size(path, file, entries)  # before anything is allocated
    header = _header(entries)
    with path.open("rb", buffering=0) as stream:
        if stream.read(len(header)) != header:
            raise CorruptData(f"{path}: the header is not the one that was written.")
        whole = xxhash.xxh3_128(header)
        for name in _order(entries):
            entry = entries[name]
            if only is not None and name not in only:
                stream.seek(entry.size, os.SEEK_CUR)
                continue
            tensor = torch.empty(entry.shape, dtype=entry.torch_dtype, device="cpu")
            target, own, start = _bytes(tensor), xxhash.xxh3_128(), 0
            while start < len(target):
                count = stream.readinto(target[start : start + _CHUNK])
                if not count:
                    raise CorruptData(f"{path} ended within tensor {name!r}.")
                own.update(target[start : start + count])
                whole.update(target[start : start + count])
                start += count
            if own.hexdigest() != entry.digest:
                raise CorruptData(f"{path}: the bytes of tensor {name!r} are not those that were written.")
            yield name, tensor
        if only is None and whole.hexdigest() != file.digest:
            raise CorruptData(f"{path}: the bytes are not those that were written.")


def check_size(path: Path, file: FileEntry, entries: Mapping[str, TensorEntry]) -> None:
    """Compare a tensor file's size with its entry, and that with its tensors' entries; nothing is read.

    Args:
        path: The file.
        file: Its entry in the manifest.
        entries: Its tensors' entries.

    Raises:
        CorruptData: They do not agree.
    """
    if file.size != len(_header(entries)) + sum(entry.size for entry in entries.values()):
        raise CorruptData(f"{path}: its size and the tensors that the manifest lists do not agree.")
    if (size := plain_size(path)) != file.size:
        raise CorruptData(f"{path} has {size} bytes; {file.size} were written.")


def _order(entries: Mapping[str, TensorEntry]) -> list[str]:
    """Widest dtypes first, so that every tensor is aligned to its dtype for readers that map the file."""
    return sorted(entries, key=lambda name: (-_DTYPES[entries[name].dtype].itemsize, name))


def _header(entries: Mapping[str, TensorEntry]) -> bytes:
    """The header follows from the entries alone: what a file claims of itself is never parsed."""
    about = {"format": "pt"}
    if pieces := {name: {"saved_offsets": e.offsets} for name, e in entries.items() if e.offsets is not None}:
        about["DCP_SHARDING_INFO"] = json.dumps(pieces, sort_keys=True)
        about["DCP_VERSION"] = "1.0"
    table: dict[str, object] = {"__metadata__": about}
    start = 0
    for name in _order(entries):
        entry = entries[name]
        stop = start + entry.size
        table[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    # as_strided: an empty or one-element tensor is contiguous whatever its strides say, but `view` believes them
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().data


def file_entry(data: bytes) -> FileEntry:
    """The entry of a file with these bytes.

    Args:
        data: All of it.

    Returns:
        Size and digest.
    """
    return FileEntry(size=len(data), digest=digest(data))
