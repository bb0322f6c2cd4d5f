"""One rank's part of a sharded state, written and read through torch.distributed.checkpoint's plans.

The plans say which rank writes which piece, and which pieces another number of ranks needs; the collectives that pass
them on carry every rank's error to all. The files are ours, in the format of its HuggingFaceStorageWriter: that one
builds each file in memory, neither hashes nor syncs the folder, and publishes in place.
"""

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, StorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from dynaxx.checkpoints.commit import Content, Draft, begin
from dynaxx.checkpoints.manifest import CheckpointInfo, Manifest
from dynaxx.checkpoints.pieces import check_sizes, check_tiling, region
from dynaxx.checkpoints.tensorfile import TensorEntry, read_tensors, write_tensors


class ShardWriter(StorageWriter):
    """What `torch.distributed.checkpoint.save` calls on each rank; its last step, on the first rank, is the commit.

    Args:
        folder: The store.
        parts: Name → this rank's part, contiguous.
        content: What the checkpoint says besides its tensors; the first rank's counts.
    """

    def __init__(self, folder: Path, parts: Mapping[str, Tensor], content: Content) -> None:
        self.folder = folder
        self.parts = parts
        self.content = content
        self.draft: Draft | None = None

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None:
        """Nothing is kept between saves."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Every rank is alike until the plans are made."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """This rank's plan, as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the first rank: make the staging folder, and tell each rank its file."""
        self.draft = begin(self.folder, self.content.step)
        files = [self.draft.staging / f"shard-{rank:05d}.safetensors" for rank in range(len(plans))]
        return [replace(plan, storage_data=str(file)) for plan, file in zip(plans, files, strict=True)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> "Future[list[WriteResult]]":
        """Write this rank's file; empty pieces are left out, unless the tensor itself is empty."""
        pieces = {
            item.index.fqn: (item.index, tuple(item.tensor_data.chunk.offsets))
            for item in plan.items
            if item.tensor_data is not None
            and (item.tensor_data.chunk.sizes.numel() or not item.tensor_data.size.numel())
        }
        results: list[WriteResult] = []
        if pieces:
            path = Path(cast(str, plan.storage_data))
            written = write_tensors(
                path,
                {name: self.parts[name].cpu() for name in pieces},
                {name: offsets for name, (_, offsets) in pieces.items()},
            )
            index = next(iter(pieces.values()))[0]
            results.append(WriteResult(index=index, size_in_bytes=written[0].size, storage_data=(path.name, written)))
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the first rank, once all have written: commit, and pass on what was committed with the metadata."""
        assert self.draft is not None
        written = dict(result.storage_data for rank in results for result in rank)
        metadata.planner_data = self.draft.publish(self.content, written)

    def discard(self) -> None:
        """Delete what was written, unless it was published."""
        if self.draft is not None:
            self.draft.discard()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        """Where it goes was said at the construction."""
        return False


def committed_info(metadata: Metadata) -> CheckpointInfo:
    """What `ShardWriter` committed.

    Args:
        metadata: What `torch.distributed.checkpoint.save` returned.

    Returns:
        The checkpoint.
    """
    return cast(CheckpointInfo, metadata.planner_data)


def read_into(path: Path, manifest: Manifest, targets: dict[str, Tensor]) -> None:
    """Fill tensors from a checkpoint; of a DTensor this rank's part, and no more is read than its pieces need.

    Args:
        path: The checkpoint's folder.
        manifest: Its manifest.
        targets: Name → tensor or DTensor of the saved shape and dtype, overwritten piece by piece.

    Raises:
        CorruptData: The bytes that were read are not those that were written.
    """
    check_sizes(path, manifest)
    check_tiling(path, manifest)
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(cast("dict[str, Any]", targets), _metadata(manifest))
    wanted: dict[MetadataIndex, list[ReadItem]] = {}
    for item in planner.create_local_plan().items:
        wanted.setdefault(_key(item.storage_index.fqn, item.storage_index.offset), []).append(item)
    for file, table in manifest.tensors.items():
        keys = {name: _key(name, _offsets(table[name])) for name in table}
        names = {name for name, key in keys.items() if key in wanted}
        for name, piece in read_tensors(path / file, manifest.files[file], table, names):
            for item in wanted[keys[name]]:
                spans = zip(item.storage_offsets, item.lengths, strict=True)
                source = piece[tuple(slice(start, start + length) for start, length in spans)]
                planner.resolve_tensor(item).copy_(source)


def _metadata(manifest: Manifest) -> Metadata:
    chunks: dict[str, list[ChunkStorageMetadata]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for table in manifest.tensors.values():
        for name, entry in table.items():
            chunk = ChunkStorageMetadata(offsets=_offsets(entry), sizes=torch.Size(entry.shape))
            chunks.setdefault(name, []).append(chunk)
            dtypes[name] = entry.torch_dtype
    return Metadata(
        {
            name: TensorStorageMetadata(TensorProperties(dtypes[name]), torch.Size(shape), chunks[name])
            for name, shape in manifest.shapes().items()
        }
    )


def _key(name: str, offsets: torch.Size | None) -> MetadataIndex:
    return MetadataIndex(name, offsets)


def _offsets(entry: TensorEntry) -> torch.Size:
    return torch.Size(part.start for part in region(entry))
