"""Checkpoints of a sharded training: every rank writes its part, the first commits, any number of ranks reads them."""

import math
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch.distributed.checkpoint as dcp
from torch import Tensor

from dynaxx.checkpoints.asynchronous import Background, PendingSave
from dynaxx.checkpoints.attempts import forget_attempts
from dynaxx.checkpoints.codec import decode
from dynaxx.checkpoints.commit import Content, encoded
from dynaxx.checkpoints.folders import unreadable_is_corrupt
from dynaxx.checkpoints.layouts import targets
from dynaxx.checkpoints.manifest import CheckpointInfo, load_manifest
from dynaxx.checkpoints.pieces import read_tree
from dynaxx.checkpoints.shardfile import ShardWriter, committed_info, read_into
from dynaxx.checkpoints.store import CheckpointStore
from dynaxx.checkpoints.together import Together
from dynaxx.core.parameters import local
from dynaxx.errors import BadInput, CorruptData, DynaxxError, NotSaved

TIMEOUT = 600.0
"""Seconds that a rank waits for the others: as long as torch waits for NCCL by default. It must be longer than the
slowest rank takes to write its part."""


class ShardedStore:
    """Checkpoints of a run whose state is cut up over ranks (FSDP2, tensor parallelism), or of any run of several.

    Every method but `flush`, `stalls` and those of `store` is a collective: all ranks call it, alike. The ranks see one
    file system. What one rank finds wrong, all raise.

    Args:
        folder: `<run>/checkpoints`; made by the first save.
        timeout: Seconds that a rank waits for the others.

    Raises:
        BadInput: torch.distributed has not been initialised.
    """

    def __init__(self, folder: str | Path, *, timeout: float = TIMEOUT) -> None:
        self.store = CheckpointStore(folder)
        """The same checkpoints for one process: to list, verify and read them whole; to prune them on one rank."""
        self._ranks = Together(timeout)
        self._background: Background | None = None
        self._lost = ""

    def save(self, step: int, state: Mapping[str, Any], *, facts: Mapping[str, Any] | None = None) -> CheckpointInfo:
        """Commit a checkpoint; it is there when this returns, on every rank.

        DTensors are written shard by shard. What else the state holds is the first rank's.

        Args:
            step: Completed optimizer steps.
            state: Of the same structure on every rank; it must not change meanwhile.
            facts: As in `CheckpointStore.save`; the first rank's.

        Returns:
            The checkpoint, on every rank.

        Raises:
            BadInput: The state or the facts cannot be stored, or the ranks do not save the same.
            NotSaved: A disk is full, read-only or broken, or a rank is gone or did not answer in time.
        """
        draft = self._draft(step, state, facts, host=True)
        self.flush()
        return self._commit(draft, draft.parts)

    def save_async(self, step: int, state: Mapping[str, Any], *, facts: Mapping[str, Any] | None = None) -> PendingSave:
        """Copy this rank's part and commit the checkpoint in the background, as `CheckpointStore.save_async` does.

        Args:
            step: Completed optimizer steps.
            state: As in `save`; it may change once this returns.
            facts: As in `save`.

        Returns:
            The save, whose result is the checkpoint or raises what `save` would: on every rank, whichever failed.
        """
        draft = self._draft(step, state, facts, host=False)
        if self._background is None or self._background.process != os.getpid():
            self._background = Background()
        # All ranks must come to the same commits: memory is waited for as long as the others may take.
        return self._background.submit(step, draft.parts, lambda parts: self._commit(draft, parts), math.inf)

    def flush(self, timeout: float | None = None) -> bool:
        """As `CheckpointStore.flush`.

        Args:
            timeout: Seconds; None: until all saves under way have ended.

        Returns:
            Whether all have.
        """
        idle = self._background is None or self._background.process != os.getpid()
        return idle or cast(Background, self._background).flush(timeout)

    def close(self) -> None:
        """Wait for the saves under way, and leave the ranks' group; the store saves no more."""
        if self._background is not None:
            self._background.close()
        self._ranks.part()
        self._lost = "the store was closed"

    def load(
        self, which: CheckpointInfo | int | None = None, *, like: Mapping[str, Any], tries: int | None = None
    ) -> tuple[dict[str, Any], CheckpointInfo]:
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
        """
        if which is not None:
            name = self._ranks.first(lambda: self.store.path_of(which).name)
            state, info, error = self._read(name, like)
            self._ranks.agree(error)
            return cast("dict[str, Any]", state), cast(CheckpointInfo, info)
        names = self.store.candidates(tries)
        passed_over: list[str] = []
        while (name := self._ranks.first(lambda: next(names, None))) is not None:
            state, info, error = self._read(name, like)
            try:
                self._ranks.agree(error)
            except CorruptData as corrupt:
                passed_over.append(name)
                if self._ranks.rank == 0:
                    self.store.quarantine(name, corrupt)
            else:
                return cast("dict[str, Any]", state), replace(
                    cast(CheckpointInfo, info), passed_over=tuple(passed_over)
                )
        if passed_over:
            raise CorruptData(f"Every checkpoint in {self.store.folder} is corrupted: {', '.join(passed_over)}.")
        raise BadInput(f"load(): {self.store.folder} holds no checkpoint. Was the run's folder given, and did it save?")

    def preflight(self) -> None:
        """As `CheckpointStore.preflight`, on every rank.

        Raises:
            NotSaved: A rank cannot write there.
        """
        error = None
        try:
            self.store.preflight()
        except NotSaved as refused:
            error = refused
        self._ranks.agree(error)

    def continue_from(self, info: CheckpointInfo) -> None:
        """As `CheckpointStore.continue_from`.

        Args:
            info: The checkpoint that was restored.
        """
        self.store.continue_from(info)

    def _draft(self, step: int, state: Mapping[str, Any], facts: Mapping[str, Any] | None, *, host: bool) -> "_Draft":
        """What this rank has to save; what is wrong with it the others must hear, so nothing is raised yet."""
        try:
            tensors, content = encoded(step, state, facts, self.store.origin, host=host, shards=True)
        except DynaxxError as error:
            return _Draft(step=step, error=error)
        return _Draft(step=step, tensors=tensors, content=content)

    def _commit(self, draft: "_Draft", parts: Mapping[str, Tensor]) -> CheckpointInfo:
        with self._answering(draft.step):
            self._ranks.meet()
            self._ranks.agree(draft.error)
            self._ranks.agree(self._difference(draft))
            writer = ShardWriter(self.store.folder, parts, cast(Content, draft.content))
            try:
                planner = dcp.DefaultSavePlanner(flatten_state_dict=False, dedup_save_to_lowest_rank=True)
                done = dcp.save(
                    dict(draft.tensors), storage_writer=writer, planner=planner, process_group=self._ranks.group
                )
            except dcp.CheckpointException as error:  # no Exception, so that it must be caught by name
                raise _refused(draft.step, error) from error
            finally:
                writer.discard()
        forget_attempts(self.store.folder)
        return committed_info(cast(Any, done))

    def _difference(self, draft: "_Draft") -> BadInput | None:
        """What this rank saves otherwise than the first one does."""
        own = {name: (str(tensor.dtype), tuple(tensor.shape)) for name, tensor in draft.tensors.items()}
        step, theirs = self._ranks.first(lambda: (draft.step, own))
        if step != draft.step:
            return BadInput(f"save(step={draft.step}): rank 0 saves step {step}. All ranks must save the same step.")
        if different := sorted(dict(own.items() ^ theirs.items())):
            return BadInput(
                f"save(state=...): {len(different)} tensors are not the same, or of the same shape and dtype, as on "
                f"rank 0, such as {different[0]!r}. The state must have one structure on all ranks."
            )
        return None

    def _read(
        self, name: str, like: Mapping[str, Any]
    ) -> tuple[dict[str, Any] | None, CheckpointInfo | None, DynaxxError | None]:
        """A checkpoint's state on this rank, or what is wrong with it."""
        path = self.store.folder / name
        try:
            with unreadable_is_corrupt(path):
                manifest = load_manifest(path)
                tree = read_tree(path, manifest)
                tensors = targets(manifest, tree, like)
                read_into(path, manifest, tensors)
            return decode(tensors, tree), manifest.info(path), None
        except DynaxxError as error:
            return None, None, error

    @contextmanager
    def _answering(self, step: int) -> Generator[None]:
        """What the ranks' group raises once one of them is gone, in words; the group is of no use after that."""
        said = f"The checkpoint of step {step} was not saved; earlier ones are intact"
        if self._lost:
            raise NotSaved(f"{said}. {self._lost}: restart the training to save again")
        try:
            yield
        except RuntimeError as error:
            self._lost = f"A rank is gone, or did not answer within {self._ranks.timeout.total_seconds():g} s"
            self._ranks.part()
            raise NotSaved(f"{said}. {self._lost} ({str(error).splitlines()[0]})") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """What one rank has to save, or why it cannot."""

    step: int
    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    content: Content | None = None
    error: DynaxxError | None = None

    @property
    def parts(self) -> dict[str, Tensor]:
        return {name: local(tensor) for name, tensor in self.tensors.items()}


def _refused(step: int, error: dcp.CheckpointException) -> NotSaved:
    """What the ranks could not write, with the first one's number for the reason."""
    failures = {rank: wrapped[0] for rank, wrapped in sorted(error.failures.items())}
    reasons = "; ".join(f"rank {rank}: {reason}" for rank, reason in failures.items())
    numbers = [reason.errno for reason in failures.values() if isinstance(reason, OSError) and reason.errno]
    message = f"The checkpoint of step {step} was not saved on any rank ({reasons}); earlier ones are intact"
    return NotSaved(numbers[0], message) if numbers else NotSaved(message)
