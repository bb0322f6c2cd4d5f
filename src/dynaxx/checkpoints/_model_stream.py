"""The model of a checkpoint tensor by tensor: no more than one of them is in memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from dynaxx.checkpoints.codec import chosen, decode, referenced
from dynaxx.checkpoints.manifest import Manifest, load_manifest
from dynaxx.checkpoints.pieces import check_sizes, check_tiling, read_tree, read_whole
from dynaxx.checkpoints.tensorfile import read_tensors

Stream = Iterator[tuple[str, Tensor]]
"""Parameters and persistent buffers by bare name. Use each before the next is asked for; exhaust it before any of it
counts, because damage may be found at the last byte."""


def stream_model(path: Path) -> Stream:
    """The model's tensors, file by file; the optimizer's are not read.

    Args:
        path: The checkpoint's folder.

    Yields:
        Bare name and tensor, whole where it was sharded.

    Raises:
        CorruptData: Bytes are not those that were written.
        BadInput: The checkpoint holds no model of a training.
    """
    manifest, model = _opened(path)
    places: dict[str, list[tuple[str, Any]]] = {}
    for name, node in model["state"].items():
        if _is_tensor(node):
            places.setdefault(node["$tensor"], []).append((name, node))  # tied ones share an entry
    for key, tensor in _read(path, manifest, set(places)):
        for name, node in places[key]:
            # `decode` keeps a tensor until garbage is collected: half a model more, where most are taken as they are
            yield name, tensor if len(node) == 1 else decode({key: tensor}, node)


def model_frame(path: Path) -> dict[str, Any]:
    """What else belongs to the model's state.

    Args:
        path: The checkpoint's folder.

    Returns:
        `metadata`, `buffers` that are not persistent, and of `state` what is no tensor. Raises as `stream_model` does.
    """
    manifest, model = _opened(path)
    rest = {**model, "state": {name: node for name, node in model["state"].items() if not _is_tensor(node)}}
    return decode(dict(_read(path, manifest, referenced(rest))), rest)


def _read(path: Path, manifest: Manifest, names: set[str]) -> Stream:
    check_sizes(path, manifest)
    check_tiling(path, manifest)
    for file, table in manifest.tensors.items():
        own = {name for name in names & table.keys() if table[name].offsets is None}
        yield from read_tensors(path / file, manifest.files[file], table, own)
    sharded = {
        name for table in manifest.tensors.values() for name, entry in table.items() if entry.offsets is not None
    }
    for name in sorted(names & sharded):
        yield from read_whole(path, manifest, {name}.__contains__).items()


def _opened(path: Path) -> tuple[Manifest, dict[str, Any]]:
    """The manifest and the tree of the model's state."""
    manifest = load_manifest(path)
    return manifest, chosen(read_tree(path, manifest), ("model",), path)["model"]


def _is_tensor(node: Any) -> bool:
    return isinstance(node, dict) and "$tensor" in node
