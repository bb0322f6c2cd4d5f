"""Commits a run's checkpoints, at once or in the background, and keeps those that are worth keeping."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from dynaxx.checkpoints import CheckpointInfo
from dynaxx.checkpoints.asynchronous import PendingSave
from dynaxx.checkpoints.health import PROBATION, illness, mark, settle, verdicts
from dynaxx.checkpoints.pruning import prune
from dynaxx.checkpoints.retention import Last, Policy
from dynaxx.checkpoints.save_policy import SavePolicy
from dynaxx.errors import BadInput, NotApplicable, NotSaved
from dynaxx.session.checkpoints import RunCheckpoints

PORTIONS = 4
"""Checkpoints on probation that stay besides the latest, evenly apart: without them the latest would push all others
out before they have outlived it."""
TAKEN = frozenset({"id", "of_step", "origin", "kind", "step", "time", "attempt"})
"""Names that the log's event of a save has itself."""


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
    """The checkpoints of one run, on the ranks that write.

    Besides the latest stay those that are pinned or branched from, and the last two healthy ones; where the run is
    diagnosed, also some that may become healthy. One that holds what is not finite is said to be bad, diagnosed or not.
    A disk that is full or gone costs the checkpoint and a warning, not the training.

    Args:
        checkpoints: Where they go.
        event: Writes an event at the present step.
        warn: Called with a message when one could not be written.
        steps: Planned optimizer steps, or None.
    """

    def __init__(
        self, checkpoints: RunCheckpoints, event: Callable[..., None], warn: Callable[[str], None], steps: int | None
    ) -> None:
        self.checkpoints, self.store = checkpoints, checkpoints.store
        self.policy = SavePolicy(steps)
        """When one is due; it takes note of every save, whoever asked for it."""
        self.policy.begin(time.monotonic())
        self.keep: int | Policy = 3
        """What stays, as the last save was told."""
        self.alarms: Callable[[], Collection[int]] | None = None
        """Steps at which the run was critically ill; None: it is not diagnosed."""
        self.probation = PROBATION
        """Steps without an alarm that make a checkpoint healthy."""
        self._event, self._warn = event, warn
        self._pending: list[tuple[PendingSave, dict[str, Any], int | Policy]] = []
        self._tidying = ThreadPoolExecutor(1, "dynaxx-tidying")
        self._tidied: list[Future[None]] = []

    def save(
        self, step: int, state: Mapping[str, Any], facts: Mapping[str, Any], *, keep: int | Policy, wait: bool
    ) -> CheckpointInfo | None:
        """Commit a state.

        Args:
            step: Completed optimizer steps.
            state: The full state; without `wait` it is copied before this returns.
            facts: What a reader should know of it.
            keep: How many of the latest stay; or what stays.
            wait: Return when it is on disk and what need not stay is gone, not when it is copied.

        Returns:
            What was written; None where it could not be, or is still being written.

        Raises:
            BadInput: A fact has a name that the log needs.
        """
        if taken := sorted(TAKEN & facts.keys()):
            raise BadInput(f"run.save({taken[0]}=...): the log has a field of this name of its own. Rename the fact.")
        began = time.monotonic()
        self.settle()
        self.keep = keep
        info = None
        try:
            if wait:
                info = self.checkpoints.save(step, state, facts)
                self._committed(info, facts, keep)
                self._swept(wait=True)
            else:
                self._pending.append((self.checkpoints.save_async(step, state, facts), dict(facts), keep))
        except (BadInput, NotApplicable, NotSaved) as error:
            self._lost(step, error)
        now = time.monotonic()
        self.policy.saved(step, now, now - began)
        return info

    def settle(self, *, wait: bool = False) -> None:
        """Log the saves in the background that have ended, and have pruned what need not stay after them.

        Args:
            wait: Wait for all of them, and for the pruning: from then on no checkpoint goes until one is saved.
        """
        while self._pending and (wait or self._pending[0][0].done):
            pending, facts, keep = self._pending.pop(0)
            try:
                self._committed(pending.result(), facts, keep)
            except (BadInput, NotApplicable, NotSaved) as error:
                self._lost(pending.step, error)
        self._swept(wait=wait)

    def judge(self, step: int) -> None:
        """Have every checkpoint written and judged by what is known now, not when the last one was saved.

        Args:
            step: Completed optimizer steps.
        """
        self.settle(wait=True)
        if self.alarms is not None and self.checkpoints.first:
            alarms = self.alarms()
            self._tolerant(lambda: self._settled(step, alarms), "The health of the checkpoints was not noted")

    def close(self, ended: int | None = None) -> None:
        """Wait for the saves in the background.

        Args:
            ended: The step at which the training has ended; None: it may go on. Where that is the last of the planned
                ones no alarm can come any more: checkpoints on probation without one are healthy.
        """
        self.settle(wait=True)
        judged = self.alarms is not None and self.checkpoints.first
        if judged and ended is not None and ended >= (self.policy.steps or 0):
            self._tolerant(lambda: self._acquit(ended), "The health of the last checkpoints was not noted")
        self._tidying.shutdown()
        self.checkpoints.close()

    def state_dict(self) -> dict[str, Any]:
        """When the next save is due depends on it."""
        return self.policy.state_dict(time.monotonic())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `state_dict` returned; an older checkpoint has none of it.
        """
        if state:
            self.policy.load_state_dict(state)
            self.policy.begin(time.monotonic())

    def _committed(self, info: CheckpointInfo, facts: Mapping[str, Any], keep: int | Policy) -> None:
        self._event("checkpoint", id=info.id, of_step=info.step, origin=info.origin, **facts)
        if self.checkpoints.first:
            alarms = None if self.alarms is None else frozenset(self.alarms())
            policy = Last(keep) if isinstance(keep, int) else keep
            self._tidied.append(self._submitted(lambda: self._tidy(info, policy, alarms)))

    def _submitted(self, work: Callable[[], None]) -> Future[None]:
        """Beside the training, since it reads every checkpoint whole once; in this thread where there is no other."""
        try:
            return self._tidying.submit(work)
        except RuntimeError:  # the interpreter is exiting
            outcome: Future[None] = Future()
            try:
                outcome.set_result(work())
            except Exception as error:
                outcome.set_exception(error)
            return outcome

    def _swept(self, *, wait: bool) -> None:
        while self._tidied and (wait or self._tidied[0].done()):
            self._tolerant(self._tidied.pop(0).result, "Older checkpoints stay for now")

    def _tidy(self, info: CheckpointInfo, policy: Policy, alarms: Collection[int] | None) -> None:
        if alarms is not None:
            self._settled(info.step, alarms)
            young = frozenset(key for key, said in verdicts(self.store).items() if said.health == "probation")
            policy |= _Growing(self.probation, young)
        elif ill := illness(info):
            mark(self.store, info, "bad", ill)
        prune(self.store, policy)

    def _acquit(self, ended: int) -> None:
        assert self.alarms is not None
        self._settled(ended, self.alarms())
        said = verdicts(self.store)
        for info in self.store.list():
            if info.id in said and said[info.id].health == "probation":
                mark(self.store, info, "healthy", f"no alarm until the training ended at step {ended}")

    def _settled(self, step: int, alarms: Collection[int]) -> None:
        settle(self.store, step, alarms, self.probation)

    def _tolerant(self, work: Callable[[], None], what: str) -> None:
        """What a disk refuses besides the saving itself costs a warning."""
        try:
            work()
        except OSError as error:
            self._warn(f"{what}: {error}")

    def _lost(self, step: int, error: Exception) -> None:
        self._warn(f"No checkpoint was written at step {step}; training goes on. {error}")
