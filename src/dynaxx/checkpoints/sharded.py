"""Checkpoints of a sharded training: every rank writes its part, the first commits, any number of ranks reads them."""

import math
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor

from dynaxx.checkpoints.asynchronous import Background, PendingSave
from dynaxx.checkpoints.attempts import forget_attempts
from dynaxx.checkpoints.codec import decode
from dynaxx.checkpoints.commit import Content, encoded
from dynaxx.checkpoints.fallback import Loaded, latest_valid
from dynaxx.checkpoints.folders import unreadable_is_corrupt
from dynaxx.checkpoints.layouts import targets
from dynaxx.checkpoints.manifest import CheckpointInfo, load_manifest
from dynaxx.checkpoints.pieces import read_tree
from dynaxx.checkpoints.shardfile import ShardWriter, committed_info, read_into
from dynaxx.checkpoints.store import CheckpointStore
from dynaxx.checkpoints.together import Together
from dynaxx.core.parameters import is_sharded, local
from dynaxx.errors import BadInput, DynaxxError, NotSaved

TIMEOUT = 600.0
"""Seconds that a rank waits for the others: as long as torch waits for NCCL by default. It must be longer than the
slowest rank takes to write its part."""


class ShardedStore:
    """Checkpoints of a run whose state is cut up over ranks (FSDP2, tensor parallelism), or of any run of several.

    Making one is a collective, and so are `save`, `save_async`, `load` and `preflight`: all ranks call them alike, and
    what one rank finds wrong all raise. The ranks see one file system. Close it before the process group is destroyed.

    Args:
        folder: `<run>/checkpoints`; made by the first save.
        timeout: Seconds that a rank waits for the others.

    Raises:
        BadInput: torch.distributed has not been initialised, or the timeout is not positive.
    """

    def __init__(self, folder: str | Path, *, timeout: float = TIMEOUT) -> None:
        self.store = CheckpointStore(folder)
        """The same checkpoints for one process: to list, verify and read them whole; to prune them, on one rank."""
        self._ranks = Together(timeout)
        self._background = Background()

    def save(self, step: int, state: Mapping[str, Any], *, facts: Mapping[str, Any] | None = None) -> CheckpointInfo:
        """Commit a checkpoint; it is there when this returns, on every rank.

        DTensors are written shard by shard. What else the state holds is the first rank's: gather there what differs.

        Args:
            step: Completed optimizer steps.
            state: With the same DTensors on every rank; it must not change meanwhile.
            facts: As in `CheckpointStore.save`; the first rank's.

        Returns:
            The checkpoint, on every rank.

        Raises:
            BadInput: The state or the facts cannot be stored, or the ranks do not save the same.
            NotSaved: A disk is full, read-only or broken, or a rank is gone or did not answer in time.
        """
        asked = self._asked(step, state, facts, host=True)
        self.flush()
        return self._commit(step, asked, _parts(asked))

    def save_async(self, step: int, state: Mapping[str, Any], *, facts: Mapping[str, Any] | None = None) -> PendingSave:
        """Copy this rank's part and commit the checkpoint in the background, as `CheckpointStore.save_async` does.

        Args:
            step: Completed optimizer steps.
            state: As in `save`; it may change once this returns.
            facts: As in `save`.

        Returns:
            The save, whose result is the checkpoint or raises what `save` would: on every rank, whichever failed.
        """
        asked = self._asked(step, state, facts, host=False)
        # All ranks must come to the same commits: memory is waited for as long as the others may take.
        return self._background.submit(
            step, _parts(asked), lambda parts: self._commit(step, asked, parts), patience=math.inf
        )

    def flush(self, timeout: float | None = None) -> bool:
        """As `CheckpointStore.flush`.

        Args:
            timeout: Seconds; None: until all saves under way have ended.

        Returns:
            Whether all have.
        """
        return self._background.flush(timeout)

    @property
    def stalls(self) -> tuple[int, float]:
        """As of `CheckpointStore`, on this rank."""
        return self._background.stalls, self._background.stalled

    def close(self) -> None:
        """Wait for the saves under way, and leave the ranks' group; the store saves and loads no more."""
        self._background.close()
        self._ranks.part("The store was closed")

    def load(
        self, which: CheckpointInfo | int | None = None, *, like: Mapping[str, Any], tries: int | None = None
    ) -> Loaded:
        """Verify and read a checkpoint that any number of ranks wrote; each rank reads what it needs.

        Args:
            which: As in `CheckpointStore.load`.
            like: The present state, whose tensors say what goes where: `capture` of the training to be restored. It
                stays as it is.
            tries: As in `CheckpointStore.load`.

        Returns:
            The state, new DTensors where `like` has them, and the checkpoint: the same on every rank.

        Raises:
            BadInput: There is no such checkpoint, or a later version of Dynaxx wrote it.
            CorruptData: The one asked for is corrupted, or all are.
            DynaxxError: A rank is gone or did not answer in time.
        """
        with self._ranks.answering("No checkpoint was loaded", DynaxxError):
            if which is not None:
                return self._read(self._ranks.first(lambda: self.store.path_of(which).name), like)
            names = self.store.candidates(tries)
            return latest_valid(
                self.store.folder,
                iter(lambda: self._ranks.first(lambda: next(names, None)), None),
                lambda name: self._read(name, like),
                self.store.quarantine if self._ranks.rank == 0 else lambda name, reason: True,
            )

    def preflight(self) -> None:
        """As `CheckpointStore.preflight`, on every rank.

        Raises:
            NotSaved: A rank cannot write there.
        """
        with self._ranks.answering("No checkpoint can be saved", NotSaved):
            self._ranks.agree(self.store.preflight)

    def continue_from(self, info: CheckpointInfo) -> None:
        """As `CheckpointStore.continue_from`.

        Args:
            info: The checkpoint that was restored.
        """
        self.store.continue_from(info)

    def _asked(self, step: int, state: Mapping[str, Any], facts: Mapping[str, Any] | None, *, host: bool) -> "_Asked":
        """What this rank is to save; an error waits in it, since the others must hear of it too."""
        asked = _Asked()
        try:
            tensors, content = encoded(step, state, facts, self.store.origin, host=host, shards=True)
        except DynaxxError as error:
            asked.set_exception(error)
        else:
            own = tensors if self._ranks.rank == 0 else {name: t for name, t in tensors.items() if is_sharded(t)}
            asked.set_result((own, content))
        return asked

    def _commit(self, step: int, asked: "_Asked", parts: Mapping[str, Tensor]) -> CheckpointInfo:
        what = f"The checkpoint of step {step} was not saved; earlier ones are intact"
        with self._ranks.answering(what, NotSaved):
            self._ranks.meet()
            tensors, content = self._ranks.agree(asked.result)
            self._ranks.agree(lambda: self._check_alike(step, tensors))
            writer = ShardWriter(self.store.folder, parts, content)
            planner = dcp.DefaultSavePlanner(flatten_state_dict=False, dedup_save_to_lowest_rank=True)
            try:
                done = dcp.save(dict(tensors), storage_writer=writer, planner=planner, process_group=self._ranks.group)
            except dcp.CheckpointException as error:  # no Exception, so that it must be caught by name
                raise _refused(what, error) from error
            finally:
                writer.discard()
        forget_attempts(self.store.folder)
        return committed_info(done)

    def _check_alike(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        own = {name: (str(t.dtype), tuple(t.shape)) for name, t in tensors.items() if is_sharded(t)}
        first, theirs = self._ranks.first(lambda: (step, own))
        if step != first:
            raise BadInput(f"save(step={step}): rank 0 saves step {first}. All ranks must save the same step.")
        if different := sorted(dict(own.items() ^ theirs.items())):
            raise BadInput(
                f"save(state=...): {len(different)} DTensors are not the same, or of the same shape and dtype, as on "
                f"rank 0, such as {different[0]!r}. All ranks must hold their shards of the same tensors."
            )

    def _read(self, name: str, like: Mapping[str, Any]) -> Loaded:
        """A checkpoint's state on this rank, once all ranks have theirs."""
        path = self.store.folder / name

        def read() -> Loaded:
            try:
                with unreadable_is_corrupt(path):
                    manifest = load_manifest(path)
                    tree = read_tree(path, manifest)
                    tensors = targets(manifest, tree, like)
                    read_into(path, manifest, tensors)
            except OSError as error:
                raise BadInput(f"{path} cannot be read ({error.strerror}). Make it readable to every rank.") from error
            return decode(tensors, tree), manifest.info(path)

        return self._ranks.agree(read)


_Asked = Future[tuple[dict[str, Tensor], Content]]


def _parts(asked: _Asked) -> dict[str, Tensor]:
    """This rank's part of every tensor, contiguous; nothing where there is an error."""
    if asked.exception():
        return {}
    return {name: local(tensor).resolve_neg().contiguous() for name, tensor in asked.result()[0].items()}


def _refused(what: str, error: dcp.CheckpointException) -> NotSaved:
    """What the ranks could not write, with the first one's number for the reason."""
    failures = {rank: wrapped[0] for rank, wrapped in sorted(error.failures.items())}
    reasons = "; ".join(f"rank {rank}: {reason}" for rank, reason in failures.items())
    numbers = [reason.errno for reason in failures.values() if isinstance(reason, OSError) and reason.errno]
    return NotSaved(*numbers[:1], f"{what} ({reasons})")
