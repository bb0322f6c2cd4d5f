"""Commits a run's checkpoints, at once or in the background, and keeps those that are worth keeping."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynaxx.checkpoints import CheckpointInfo, CheckpointStore
from dynaxx.checkpoints.asynchronous import PendingSave
from dynaxx.checkpoints.health import PROBATION, settle, verdicts
from dynaxx.checkpoints.pruning import prune
from dynaxx.checkpoints.retention import Last, Policy
from dynaxx.errors import BadInput, NotApplicable, NotSaved

PORTIONS = 4
"""Checkpoints on probation that stay besides the latest, evenly apart: without them the latest would push all others
out before they have outlived it."""


@dataclass(frozen=True)
class _Growing(Policy):
    """Those on probation, a portion of it apart, the oldest first: what is kept once is kept until it is judged."""

    probation: int
    young: frozenset[str]

    def keep(self, infos: Sequence[CheckpointInfo]) -> frozenset[str]:
        kept: list[CheckpointInfo] = []
        for info in sorted((i for i in infos if i.id in self.young), key=lambda i: i.step):
            if not kept or info.step - kept[-1].step >= self.probation / PORTIONS:
                kept.append(info)
        return frozenset(info.id for info in kept)


class Saving:
    """The checkpoints of one run, on the rank that writes.

    Where the run is diagnosed, the last two healthy ones stay besides the latest, and some that may become healthy;
    while there are no two, the first one does. A disk that is full or gone costs the checkpoint and a warning, not the
    training.

    Args:
        store: Where they go.
        event: Writes an event at the present step.
        warn: Called with a message when one could not be written.
    """

    def __init__(self, store: CheckpointStore, event: Callable[..., None], warn: Callable[[str], None]) -> None:
        self.store = store
        self.keep = 3
        """How many of the latest stay, as the last save was told."""
        self.alarms: Callable[[], Collection[int]] | None = None
        """Steps at which the run was critically ill; None: it is not diagnosed."""
        self.probation = PROBATION
        """Steps without an alarm that make a checkpoint healthy."""
        self._event, self._warn = event, warn
        self._pending: list[tuple[PendingSave, dict[str, Any], int]] = []

    def save(
        self, step: int, state: Mapping[str, Any], facts: Mapping[str, Any], *, keep: int, wait: bool
    ) -> CheckpointInfo | None:
        """Commit a state.

        Args:
            step: Completed optimizer steps.
            state: The full state; without `wait` it is copied before this returns.
            facts: What a reader should know of it.
            keep: How many of the latest stay.
            wait: Return when it is on disk, not when it is copied.

        Returns:
            What was written; None where it could not be, or is still being written.
        """
        self.settle()
        self.keep = keep
        try:
            if not wait:
                self._pending.append((self.store.save_async(step, state, facts=facts), dict(facts), keep))
                return None
            info = self.store.save(step, state, facts=facts)
        except (BadInput, NotApplicable, NotSaved) as error:
            self._lost(step, error)
            return None
        self._committed(info, facts, keep)
        return info

    def settle(self, *, wait: bool = False) -> None:
        """Log the saves in the background that have ended.

        Args:
            wait: Wait for all of them.
        """
        while self._pending and (wait or self._pending[0][0].done):
            pending, facts, keep = self._pending.pop(0)
            try:
                self._committed(pending.result(), facts, keep)
            except (BadInput, NotApplicable, NotSaved) as error:
                self._lost(pending.step, error)

    def close(self) -> None:
        """Wait for the saves in the background."""
        self.settle(wait=True)
        self.store.close()

    def _committed(self, info: CheckpointInfo, facts: Mapping[str, Any], keep: int) -> None:
        self._event("checkpoint", id=info.id, of_step=info.step, **facts)
        try:
            self._prune(info.step, keep)
        except OSError as error:
            self._warn(f"Older checkpoints stay for now: {error}")

    def _prune(self, step: int, keep: int) -> None:
        if self.alarms is None:
            self.store.prune(keep=keep)
            return
        settle(self.store, step, self.alarms(), self.probation)
        young = frozenset(key for key, said in verdicts(self.store).items() if said.health == "probation")
        policy = Last(keep) | _Growing(self.probation, young)
        if prune(self.store, policy, dry_run=True).refused:
            infos = self.store.list()
            kept = policy.keep(infos)
            self.store.remove([info for info in infos[1:] if info.id not in kept])
        else:
            prune(self.store, policy)

    def _lost(self, step: int, error: Exception) -> None:
        self._warn(f"No checkpoint was written at step {step}; training goes on. {error}")
