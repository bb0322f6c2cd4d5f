"""Goes back to a healthy checkpoint within a running training, in place, and keeps account of it."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Literal

from dynaxx.actuator import Actuator
from dynaxx.checkpoints import CheckpointInfo, CheckpointStore
from dynaxx.checkpoints.health import illness, verdicts
from dynaxx.checkpoints.places import behind
from dynaxx.core.findings import Finding
from dynaxx.core.isolation import RandomState
from dynaxx.core.records import Action
from dynaxx.errors import NotApplicable
from dynaxx.runlog import LogWriter
from dynaxx.runlog.recorder import Recorder
from dynaxx.session.checkpoints import RunCheckpoints
from dynaxx.session.data import Data
from dynaxx.session.instruments import Instruments
from dynaxx.session.live import Live
from dynaxx.session.training import Training

PROBATION = 100
"""Steps beyond the one it fell back from that a run must come before a rollback counts as survived. PaLM (2022) went
back about 100 steps for spikes that then stayed away."""
RETRIES = 3
"""Rollbacks without surviving one: the bound of elastic trainers, after which a cause in code or data is likelier."""


class Rollback:
    """Restores model, optimizer, scheduler, scaler, registered state, actions and instruments from a checkpoint.

    The log goes on in a new attempt from the checkpoint's step, so that what is diagnosed afterwards is the new course.
    Data is passed over by default: the batches since the checkpoint are not trained on again, since they may be what
    did the harm, and the random streams go on. To rewind takes position and streams back as well; then, if nothing
    else changes, the same bits come again.

    Args:
        training: What is trained.
        checkpoints: Its checkpoints.
        live: The loop's hooks.
        data: The position in the data.
        instruments: The signals.
        actuator: The actions in force.
        recorder: Where measurements wait.
        writer: The log; None on ranks other than the first.
        event: Writes an event at the present step.
    """

    def __init__(
        self,
        *,
        training: Training,
        checkpoints: RunCheckpoints,
        live: Live,
        data: Data,
        instruments: Instruments,
        actuator: Actuator,
        recorder: Recorder,
        writer: LogWriter | None,
        event: Callable[..., None],
    ) -> None:
        self._training, self._live, self._data = training, live, data
        self._checkpoints, self._store = checkpoints, checkpoints.store
        self._instruments, self._actuator = instruments, actuator
        self._recorder, self._writer, self._event = recorder, writer, event
        self._made: list[dict[str, int]] = []

    def to(
        self,
        before: int,
        findings: Sequence[Finding],
        *,
        data: Literal["pass", "rewind"],
        then: Sequence[Action],
        further: int = 0,
    ) -> None:
        """Go back; under several ranks a collective.

        Args:
            before: The checkpoint must lie before this step.
            findings: What stands against checkpoints.
            data: "pass" or "rewind".
            then: Actions to put into force at once.
            further: Batches of this epoch that are passed over beyond those since the checkpoint.

        Raises:
            NotApplicable: There is no such checkpoint, or too many rollbacks were made.
        """
        came = self._live.step
        info = self._chosen(before, findings)
        state, _ = self._checkpoints.load(info)
        streams = RandomState.capture()
        run = state["run"]
        rewinds = data == "rewind" and run["data"]["epoch"] == self._data.epoch
        passed = None if rewinds else self._data.index - run["data"]["index"]
        same_epoch = run["data"]["epoch"] == self._data.epoch
        self._training.restore(state)
        for parameter in self._live.layout.parameters:
            parameter.grad = None
        if rewinds:
            self._data.load_state_dict(run["data"])  # takes the restored streams along
        else:
            streams.restore()
            self._data.pass_over(further)
        self._recorder.drain()
        if self._writer is not None:
            self._writer.begin_attempt(info.step)
        self._live.begin_at(run["step"], run["skipped"])
        self._instruments.go_back(run["instruments"])
        self._actuator.go_back(run["actuator"], info.step)
        if self._training.rank == 0:
            self._store.continue_from(info)
        self._made.append({"from": came, "to": info.step})
        self._event(
            "rolled_back",
            came_from=came,
            id=info.id,
            before=before,
            data="rewound" if rewinds else "passed",
            batches_passed=passed if same_epoch else None,
            further=0 if rewinds else further,
            retry=len(self._since_survived(came)),
            level=self._training.level,
            then=list(then),
        )
        for action in then:
            self._actuator.begin(action, info.step)

    def state_dict(self) -> dict[str, Any]:
        """The rollbacks so far."""
        return {"made": [dict(each) for each in self._made]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `state_dict` returned.
        """
        self._made = [dict(each) for each in state["made"]]

    def _since_survived(self, step: int) -> list[dict[str, int]]:
        """The last rollbacks of which none was survived before the next, or before now."""
        pending: list[dict[str, int]] = []
        for made, following in zip_longest(self._made, self._made[1:]):
            reached = step if following is None else following["from"]
            pending.append(made)
            if reached > max(each["from"] for each in pending) + PROBATION:
                pending.clear()
        return pending

    def reachable(self, findings: Sequence[Finding], without: Collection[str] = ()) -> list[CheckpointInfo]:
        """Where a rollback may lead now: it takes the newest of these that lies before the step asked for.

        A retry goes further back than the last rollback did, as far as there is anything; after `RETRIES` there is
        nowhere to go. Who weighs what a rollback costs sees the same list.

        Args:
            findings: What stands against checkpoints.
            without: Ids of checkpoints that are damaged.

        Returns:
            The checkpoints, oldest first.
        """
        pending = self._since_survived(self._live.step)
        if len(pending) >= RETRIES:
            return []
        trusted = destinations(self._store, findings, without)
        return [i for i in trusted if all(i.step < made["to"] for made in pending)] or trusted[:1]

    def _chosen(self, before: int, findings: Sequence[Finding]) -> CheckpointInfo:
        """Rank 0's choice on every rank."""
        found: str = ""
        reason = ""
        if self._training.rank == 0:
            try:
                found = self._choose(before, findings).id
            except NotApplicable as error:
                reason = str(error)
        found, reason = self._training.from_first((found, reason))
        if reason:
            raise NotApplicable(reason)
        return next(info for info in self._store.list() if info.id == found)

    def _choose(self, before: int, findings: Sequence[Finding]) -> CheckpointInfo:
        if len(self._since_survived(self._live.step)) >= RETRIES:
            raise NotApplicable(
                f"{RETRIES} rollbacks were made, and none led more than {PROBATION} steps past where it fell back from"
            )
        damaged: set[str] = set()
        while options := [i for i in self.reachable(findings, damaged) if i.step < before]:
            if self._store.is_sound(options[-1]):
                return options[-1]
            damaged.add(options[-1].id)
        raise NotApplicable(f"no healthy checkpoint lies before step {before}")


def destinations(
    store: CheckpointStore, findings: Sequence[Finding], without: Collection[str] = ()
) -> list[CheckpointInfo]:
    """The checkpoints to go back to: for any step, the newest of these before it is the best before it.

    Best are those that have outlived their probation, then younger ones, then those that an alarm came soon after or
    that training went back past; within a kind the newest. So of a lesser kind only those older than all better ones
    count. None is taken that a critical finding covers, that was called bad or that is not finite.

    Args:
        store: The checkpoints.
        findings: What was found.
        without: Ids of checkpoints to leave out.

    Returns:
        The checkpoints, oldest first.
    """
    ill = [span for finding in findings if finding.severity == "critical" for span in finding.spans]
    infos = [info for info in store.list() if info.id not in without and not illness(info)]
    said, past = verdicts(store), behind(infos)
    kinds: dict[str, list[CheckpointInfo]] = {"healthy": [], "probation": [], "suspect": [], "bad": []}
    for info in infos:
        if not any(first <= info.step <= last for first, last in ill):
            health = said[info.id].health if info.id in said else "probation"
            kinds["suspect" if info.path.name in past and health != "bad" else health].append(info)
    line: list[CheckpointInfo] = []
    for kind in ("healthy", "probation", "suspect"):
        oldest = min((info.step for info in line), default=math.inf)
        line += [info for info in kinds[kind] if info.step < oldest]
    return sorted(line, key=lambda info: (info.step, info.id))


def critical(findings: Sequence[Finding]) -> set[int]:
    """Steps at which something critical stood.

    Args:
        findings: What was found.

    Returns:
        First and last step of each stretch, and steps between them close enough that no checkpoint slips through.
    """
    spans = [span for finding in findings if finding.severity == "critical" for span in finding.spans]
    return {step for first, last in spans for step in (*range(first, last, 10), last)}
