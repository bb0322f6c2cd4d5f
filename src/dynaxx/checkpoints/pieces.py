"""Whole tensors out of a checkpoint's files, whichever ranks wrote them, and every byte checked on the way."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynaxx.checkpoints.durable import plain_size
from dynaxx.checkpoints.manifest import STATE, Manifest, read_capped
from dynaxx.checkpoints.tensorfile import TensorEntry, check_size, read_tensors
from dynaxx.errors import CorruptData


def read_tree(path: Path, manifest: Manifest) -> Any:
    """The tree of a checkpoint, which refers to its tensors.

    Args:
        path: The checkpoint's folder.
        manifest: Its manifest.

    Returns:
        What `encode` returned second.

    Raises:
        CorruptData: It is not what was written.
    """
    try:
        return json.loads(read_capped(path / STATE, manifest.files[STATE]))
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"{path / STATE} does not follow the format: {error}.") from error


def read_whole(path: Path, manifest: Manifest, chosen: Callable[[str], bool] | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint, put together where they were sharded.

    Args:
        path: The checkpoint's folder.
        manifest: Its manifest.
        chosen: Which to read, by name; None: all.

    Returns:
        Name → tensor on the CPU, with memory of its own.

    Raises:
        CorruptData: The bytes are not those that were written.
    """
    check_sizes(path, manifest)  # before anything is allocated
    check_tiling(path, manifest)
    shapes, whole = manifest.shapes(), dict[str, Tensor]()
    for file, table in manifest.tensors.items():
        names = None if chosen is None else set(filter(chosen, table))
        for name, piece in read_tensors(path / file, manifest.files[file], table, names):
            if tuple(piece.shape) == shapes[name]:
                whole[name] = piece
                continue
            if name not in whole:
                whole[name] = torch.empty(shapes[name], dtype=piece.dtype, device="cpu")
            whole[name][region(table[name])] = piece
    return whole


def region(entry: TensorEntry) -> tuple[slice, ...]:
    """Where a piece lies in its tensor.

    Args:
        entry: The piece.

    Returns:
        One slice per dimension.
    """
    return tuple(slice(end - size, end) for end, size in zip(entry.ends, entry.shape, strict=True))


def check_files(path: Path, manifest: Manifest) -> None:
    """Read a checkpoint whole, one tensor at a time, against its manifest.

    Args:
        path: The checkpoint's folder.
        manifest: Its manifest.

    Raises:
        CorruptData: The bytes are not those that were written.
    """
    check_sizes(path, manifest)
    check_tiling(path, manifest)
    read_capped(path / STATE, manifest.files[STATE])
    for file, table in manifest.tensors.items():
        for _ in read_tensors(path / file, manifest.files[file], table):
            pass


def check_sizes(path: Path, manifest: Manifest) -> None:
    """Compare the sizes of a checkpoint's files with its manifest, which takes no reading.

    Args:
        path: The checkpoint's folder.
        manifest: Its manifest.

    Raises:
        CorruptData: A file is missing or of another size.
    """
    if (size := plain_size(path / STATE)) != manifest.files[STATE].size:
        raise CorruptData(f"{path / STATE} has {size} bytes; {manifest.files[STATE].size} were written.")
    for file, table in manifest.tensors.items():
        check_size(path / file, manifest.files[file], table)


def check_tiling(path: Path, manifest: Manifest) -> None:
    """Check that the pieces of every tensor cover it, each part once: what is missing would be memory's old content.

    Args:
        path: The checkpoint's folder, for the message.
        manifest: Its manifest.

    Raises:
        CorruptData: They do not, or differ in dtype.
    """
    pieces: dict[str, list[TensorEntry]] = {}
    for table in manifest.tensors.values():
        for name, entry in table.items():
            pieces.setdefault(name, []).append(entry)
    for name, shape in manifest.shapes().items():
        parts = pieces[name]
        covered = sum(math.prod(part.shape) for part in parts)
        if len({part.dtype for part in parts}) > 1 or covered != math.prod(shape) or _overlap(parts, shape):
            raise CorruptData(f"{path}: the pieces that the manifest lists of tensor {name!r} do not make it up.")


def _overlap(parts: list[TensorEntry], shape: tuple[int, ...]) -> bool:
    """Whether two pieces share an element; swept along the dimension that is cut most, where few are open at once."""
    spans = [[(s.start, s.stop) for s in region(part)] for part in parts if math.prod(part.shape)]
    if not shape:
        return len(spans) > 1
    axis = max(range(len(shape)), key=lambda dim: len({span[dim][0] for span in spans}))
    opened: list[list[tuple[int, int]]] = []
    for span in sorted(spans, key=lambda span: span[axis][0]):
        opened = [other for other in opened if other[axis][1] > span[axis][0]]
        if any(all(a < d and c < b for (a, b), (c, d) in zip(span, other, strict=True)) for other in opened):
            return True
        opened.append(span)
    return False
