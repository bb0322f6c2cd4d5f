"""The folder of a run's checkpoints: each is written aside, synced, renamed into place, and verified before it is used.

```
checkpoints/
  .staging/…                       saves in progress, and what killed processes left of theirs
  0000001000-000003-9f3c12ab/      step, number of the save, chance: never reused, never changed
    tensors.safetensors            every tensor, by its path in the state; of a sharded state shard-00000.safetensors, …
    state.json                     the tree that refers to them
    manifest.json                  written last: sizes and checksums of everything, itself included
  attempts/…                       how often training went on from a checkpoint without reaching the next
  quarantine/…                     corrupted ones, moved here when the latest was asked for
  trash/…                          on their way out
```
"""

import errno
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dynaxx.checkpoints.asynchronous import PATIENCE, Background, PendingSave
from dynaxx.checkpoints.attempts import forget_attempts, tired_last
from dynaxx.checkpoints.codec import chosen, decode, referenced
from dynaxx.checkpoints.commit import Content, begin, encoded, probe, refusals
from dynaxx.checkpoints.fallback import Loaded, latest_valid
from dynaxx.checkpoints.folders import (
    QUARANTINE,
    STAGING,
    TRASH,
    committed,
    left_behind,
    made,
    next_number,
    place,
    unreadable_is_corrupt,
)
from dynaxx.checkpoints.manifest import TENSORS, CheckpointInfo, Origin, load_manifest, load_origin
from dynaxx.checkpoints.pieces import check_files, check_sizes, read_tree, read_whole
from dynaxx.checkpoints.staging import sweep
from dynaxx.checkpoints.tensorfile import write_tensors
from dynaxx.errors import BadInput, CorruptData, DynaxxWarning


class CheckpointStore:
    """Checkpoints of one run.

    Args:
        folder: `<run>/checkpoints`; made by the first save.

    Example:
        >>> import tempfile, torch
        >>> store = CheckpointStore(Path(tempfile.mkdtemp()) / "checkpoints")
        >>> info = store.save(10, {"weight": torch.ones(2), "lr": 0.1})
        >>> store.load()[0]
        {'weight': tensor([1., 1.]), 'lr': 0.1}
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        self._verified: set[str] = set()
        self.origin: Origin | None = None
        """Where training last went back to, for the saves that come."""
        self._origins: dict[str, Origin | None] = {}  # a checkpoint never changes
        self._background = Background()

    def save(self, step: int, state: Mapping[str, Any], *, facts: Mapping[str, Any] | None = None) -> CheckpointInfo:
        """Commit a checkpoint: when this returns, it survives a kill and the loss of power.

        Args:
            step: Completed optimizer steps.
            state: Anything that `encode` takes; it must not change meanwhile.
            facts: Numbers, strings and lists or dicts of them, kept in the manifest.

        Returns:
            The checkpoint.

        Raises:
            BadInput: The step is negative, or the state or the facts cannot be stored.
            NotApplicable: The state holds shards.
            NotSaved: The disk is full, read-only or broken.
        """
        tensors, content = encoded(step, state, facts, self.origin)
        self.flush()
        return self._commit(content, tensors)

    def save_async(
        self, step: int, state: Mapping[str, Any], *, facts: Mapping[str, Any] | None = None, patience: float = PATIENCE
    ) -> PendingSave:
        """Copy a state and commit it in the background: once this returns, the next step may change the state.

        Two saves can be under way, each in memory of its own that later saves use again; a third one waits for the
        first. What is under way when the interpreter exits is finished; what a kill cuts off is swept by a later save.

        Args:
            step: Completed optimizer steps.
            state: Anything that `encode` takes.
            facts: As in `save`.
            patience: Seconds that a third save waits at most; after them it has failed.

        Returns:
            The save: `result()` is the checkpoint, or raises what `save` would. A failure that nobody asks for is said
            in a `DynaxxWarning` by the next call of `save_async`, `flush` or `close`.

        Raises:
            BadInput: The step is negative, or the state or the facts cannot be stored.
            NotApplicable: The state holds shards.

        Example:
            >>> import tempfile, torch
            >>> store = CheckpointStore(Path(tempfile.mkdtemp()) / "checkpoints")
            >>> weight = torch.zeros(2)
            >>> pending = store.save_async(10, {"weight": weight})
            >>> weight += 1
            >>> store.load(pending.result())[0]
            {'weight': tensor([0., 0.])}
        """
        if not patience >= 0:
            raise BadInput(f"save_async(patience=...) must be a number of seconds, at least 0. Got {patience!r}.")
        tensors, content = encoded(step, state, facts, self.origin, host=False)
        return self._background.submit(step, tensors, lambda copies: self._commit(content, copies), patience)

    @property
    def stalls(self) -> tuple[int, float]:
        """How often `save_async` waited for earlier saves, and for how many seconds in all."""
        return self._background.stalls, self._background.stalled

    def flush(self, timeout: float | None = None) -> bool:
        """Wait for the saves under way.

        Args:
            timeout: Seconds; None: until all have ended.

        Returns:
            Whether all have.
        """
        return self._background.flush(timeout)

    def close(self) -> None:
        """Wait for the saves under way and give their memory back; the store can be used on."""
        self._background.close()

    def preflight(self) -> None:
        """Do what a save does with a few bytes, so that a folder that cannot be written fails before the training.

        Raises:
            NotSaved: It cannot.
        """
        with refusals(self.folder, "No checkpoint can be saved"):
            probe(self.folder)

    def continue_from(self, info: CheckpointInfo) -> None:
        """Say that training goes on from this checkpoint: those beyond it are left behind.

        Once another one is saved, they count as older than all others. Call it after each restart and rollback.

        Args:
            info: The checkpoint that was restored.
        """
        self.flush()  # what is under way is of the line that ends here
        beyond = any(place(name)[0] > info.step for name in committed(self.folder))
        self.origin = Origin(checkpoint=info.path.name, number=next_number(self.folder)) if beyond else info.origin

    def list(self) -> tuple[CheckpointInfo, ...]:
        """The committed checkpoints, oldest first: by step, then by save; no clock is asked.

        Those that training has gone back past (`continue_from`) come before all others.

        Returns:
            Those whose manifest is as it was written; others are named in a `DynaxxWarning`.
        """
        infos: list[CheckpointInfo] = []
        for name in self._ordered():
            try:
                with unreadable_is_corrupt(self.folder / name):
                    infos.append(load_manifest(self.folder / name).info(self.folder / name))
            except (CorruptData, BadInput) as error:
                if (self.folder / name).exists():  # else: pruned by another process meanwhile
                    warnings.warn(f"A checkpoint is not listed: {error}", DynaxxWarning, stacklevel=2)
        return tuple(infos)

    def load(
        self,
        which: CheckpointInfo | int | None = None,
        *,
        only: Collection[str] | None = None,
        tries: int | None = None,
    ) -> Loaded:
        """Verify and read a checkpoint; nothing of it is handed out before every byte of that is checked.

        Args:
            which: A checkpoint, a step (its last save), or None: the latest that is valid. Then corrupted ones are
                moved to `quarantine/`, named in a `DynaxxWarning` and in the info that is returned.
            only: Keys of the state to read ("model"); None: all. The others' tensors are neither read nor checked.
            tries: Count this as a try to go on from the latest, and leave one to the last that was tried this often
                with no save since; None: count nothing.

        Returns:
            The state, its tensors on the CPU and the caller's own, put together where they were sharded, and the
            checkpoint.

        Raises:
            BadInput: There is no such checkpoint or key, or a later version of Dynaxx wrote it.
            CorruptData: The one asked for is corrupted, or all are.
        """
        if which is not None:
            return self._read(self.path_of(which), only)
        return latest_valid(
            self.folder, self.candidates(tries), lambda name: self._read(self.folder / name, only), self.quarantine
        )

    def candidates(self, tries: int | None = None) -> Iterator[str]:
        """Names of the checkpoints in the order in which one is looked for to go on from.

        Args:
            tries: As in `load`: each name is counted when it is handed out, and those tried too often come last.

        Returns:
            The names, latest first.
        """
        if tries is not None and tries < 1:
            raise BadInput(f"load(tries=...) must be at least 1. Got {tries!r}.")
        return tired_last(self.folder, self._ordered()[::-1], tries)

    def quarantine(self, name: str, reason: CorruptData) -> bool:
        """Move a corrupted checkpoint out of the way, and say so.

        Args:
            name: Its folder's name.
            reason: What is wrong with it.

        Returns:
            Whether it was there; else another process deleted it meanwhile, and nothing is said.
        """
        if not (self.folder / name).exists():
            return False
        try:
            (self.folder / name).rename(made(self.folder, QUARANTINE) / name)
            done = "moved to quarantine"
        except OSError as error:
            done = f"could not be moved to quarantine ({error.strerror})"
        message = f"A corrupted checkpoint is passed over and {done}: {reason}"
        warnings.warn(message, DynaxxWarning, stacklevel=4)
        return True

    def path_of(self, which: CheckpointInfo | int) -> Path:
        """Where a checkpoint is.

        Args:
            which: A checkpoint, or a step (its last save).

        Returns:
            Its folder.

        Raises:
            BadInput: There is none of this step.
        """
        if isinstance(which, CheckpointInfo):
            return which.path
        names = self._ordered()
        found = [name for name in names if place(name)[0] == which]
        if not found:
            steps = ", ".join(str(place(name)[0]) for name in names) or "none"
            raise BadInput(f"No checkpoint of step {which} is in {self.folder}. Steps there: {steps}.")
        return self.folder / found[-1]

    def verify(self, which: CheckpointInfo | int, deep: bool = True) -> None:
        """Check a checkpoint against its manifest.

        Args:
            which: A checkpoint, or a step (its last save).
            deep: Read and hash every byte; else the manifest and the sizes only.

        Raises:
            BadInput: There is no such checkpoint.
            CorruptData: It is corrupted; the message names the file, and the tensor where it can.
        """
        self._check(self.path_of(which), deep)

    def is_sound(self, which: CheckpointInfo | int) -> bool:
        """Whether a checkpoint passes a check: a deep one once per store, then of manifest and sizes.

        Args:
            which: A checkpoint, or a step (its last save).

        Returns:
            True if it does.
        """
        return self._is_sound(self.path_of(which).name)

    def prune(self, keep: int = 3) -> tuple[str, ...]:
        """Delete all but the latest checkpoints, what killed processes left of theirs, and the trash.

        Nothing is deleted unless one of those kept has passed a deep check (once per store and checkpoint, so that
        pruning after every save reads only about one in `keep` of them again).

        Args:
            keep: How many to keep.

        Returns:
            The names of those deleted.

        Raises:
            BadInput: `keep` is below 1.
        """
        if keep < 1:
            raise BadInput(f"prune(keep=...) must keep at least 1 checkpoint. Got {keep}.")
        names = self._ordered()
        old, newest_first = names[:-keep], names[-keep:][::-1]
        checked_first = sorted(newest_first, key=self._verified.__contains__, reverse=True)
        if old and not any(map(self._is_sound, checked_first)):
            message = f"Nothing is pruned from {self.folder}: none of the latest {keep} checkpoints is valid."
            warnings.warn(message, DynaxxWarning, stacklevel=2)
            old = []
        return self._removed(old)

    def remove(self, infos: Iterable[CheckpointInfo]) -> tuple[str, ...]:
        """Delete checkpoints: one rename each takes them out of sight whole, so that a kill leaves only trash.

        Args:
            infos: The checkpoints; nothing is asked of those that stay.

        Returns:
            The names of those deleted; what cannot be deleted is named in a `DynaxxWarning`.
        """
        return self._removed([info.path.name for info in infos])

    def _commit(self, content: Content, tensors: Mapping[str, Tensor]) -> CheckpointInfo:
        with refusals(self.folder, f"The checkpoint of step {content.step} was not saved"):
            draft = begin(self.folder, content.step)
            try:
                info = draft.publish(content, {TENSORS: write_tensors(draft.staging / TENSORS, tensors)})
            finally:
                draft.discard()
        forget_attempts(self.folder)
        return info

    def _read(self, path: Path, only: Collection[str] | None) -> Loaded:
        with unreadable_is_corrupt(path):
            manifest = load_manifest(path)
            tree = read_tree(path, manifest)
            if only is None:
                tensors = read_whole(path, manifest)
                self._verified.add(path.name)
            else:
                tree = chosen(tree, only, path)
                tensors = read_whole(path, manifest, referenced(tree).__contains__)
        return decode(tensors, tree), manifest.info(path)

    def _check(self, path: Path, deep: bool) -> None:
        with unreadable_is_corrupt(path):
            manifest = load_manifest(path)
            if deep:
                check_files(path, manifest)
                self._verified.add(path.name)
            else:
                check_sizes(path, manifest)

    def _is_sound(self, name: str) -> bool:
        try:
            self._check(self.folder / name, deep=name not in self._verified)
        except (CorruptData, BadInput):
            return False
        return True

    def _ordered(self) -> Sequence[str]:
        """Names of the checkpoints, oldest first; those left behind before all others."""
        names = committed(self.folder)
        for name in set(names) - self._origins.keys():
            try:
                self._origins[name] = load_origin(self.folder / name)
            except (CorruptData, BadInput, OSError):
                self._origins[name] = None  # who reads it will say what is wrong with it
        behind = left_behind(names, {self._origins[name] for name in names})
        return sorted(names, key=lambda name: (name not in behind, place(name)))

    def _removed(self, names: Iterable[str]) -> tuple[str, ...]:
        deleted = tuple(filter(self._trashed, names))
        sweep(self.folder / STAGING, self.folder / TRASH)
        return deleted

    def _trashed(self, name: str) -> bool:
        try:
            (self.folder / name).rename(made(self.folder, TRASH) / name)
        except OSError as error:
            if error.errno != errno.ENOENT:  # else: another process was faster
                message = f"{self.folder / name} cannot be deleted: {error.strerror}."
                warnings.warn(message, DynaxxWarning, stacklevel=4)
            return False
        return True
