"""The checkpoints of a run on all its ranks: replicas are written by the first one, shards by all of them together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dynaxx.checkpoints import CheckpointInfo, CheckpointStore
from dynaxx.checkpoints.asynchronous import PendingSave
from dynaxx.checkpoints.fallback import Loaded
from dynaxx.checkpoints.sharded import ShardedStore
from dynaxx.errors import DynaxxError
from dynaxx.session.training import Training

TRIES = 3
"""Resumptions from a checkpoint without reaching the next save before the one before it is tried: as many restarts as
torchrun is commonly given (`--max-restarts=3` in its documentation). What comes again after them lies in the state."""


class RunCheckpoints:
    """Saves and loads what a training is, as its ranks need it.

    Where parameters are cut up over ranks, making one is a collective, and so are saving and loading; otherwise only
    the first rank saves.

    Args:
        folder: `<run>/checkpoints`.
        training: What is trained.
    """

    def __init__(self, folder: Path, training: Training) -> None:
        self._training = training
        self._sharded = ShardedStore(folder) if training.sharded and dist.is_initialized() else None
        self.store = CheckpointStore(folder) if self._sharded is None else self._sharded.store
        """The same checkpoints for one process: to list, judge and prune them, on the first rank."""
        self.writes = training.rank == 0 or self._sharded is not None
        """Whether this rank takes part in saving."""
        self.first = training.rank == 0

    def save(self, step: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> CheckpointInfo:
        """As `CheckpointStore.save`, on every rank that writes."""
        return (self.store if self._sharded is None else self._sharded).save(step, state, facts=facts)

    def save_async(self, step: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> PendingSave:
        """As `CheckpointStore.save_async`, on every rank that writes."""
        return (self.store if self._sharded is None else self._sharded).save_async(step, state, facts=facts)

    def latest(self) -> Loaded | tuple[None, None]:
        """The latest valid checkpoint, chosen by the first rank; under several ranks a collective.

        One from which training went on `TRIES` times without reaching a save is passed over for the one before.

        Returns:
            Its state and what it is; None twice where there is no checkpoint.

        Raises:
            CorruptData: All checkpoints are corrupted; every rank raises what the first one found.
        """
        if self._sharded is not None:
            some = self._training.from_first(bool(self.first and self.store.list()))
            return self._sharded.load(like=self._training.capture(), tries=TRIES) if some else (None, None)
        loaded: Loaded | tuple[None, None] = (None, None)
        found: str | DynaxxError | None = None
        if self.first:
            try:
                if self.store.list():
                    loaded = self.store.load(tries=TRIES)
                    found = loaded[1].path.name
            except DynaxxError as error:
                found = error
        found = self._training.from_first(found)
        if isinstance(found, DynaxxError):
            raise found
        if not self.first and found is not None:
            return self.store.load(next(info for info in self.store.list() if info.path.name == found))
        return loaded

    def load(self, info: CheckpointInfo) -> Loaded:
        """Read one checkpoint on every rank.

        Args:
            info: The same one everywhere.

        Returns:
            Its state, cut up as the training is, and what it is.
        """
        if self._sharded is None:
            return self.store.load(info)
        return self._sharded.load(info, like=self._training.capture())

    def close(self) -> None:
        """Wait for the saves under way, and leave the ranks' group; nothing is saved or loaded after that."""
        self.store.close()
        if self._sharded is not None and dist.is_initialized():  # else: the loop has left before the run was closed
            self._sharded.close()
