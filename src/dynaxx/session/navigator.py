"""The navigator: at fixed steps it has the log diagnosed, asks the controllers, and says what is to be done."""

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dynaxx.controllers import Turn, begin, navigate
from dynaxx.core.findings import Finding
from dynaxx.core.navigation import REMEDIES, Mode, Situation
from dynaxx.core.records import Action
from dynaxx.runlog import RunView
from dynaxx.runlog.clipped import ClippedView
from dynaxx.session.diagnosing import Change, Diagnosing

WINDOW = 20_000
"""Steps of the log that are looked at: a diagnosis costs the same in the first hour and in the second week."""
FIRST = 20
"""Steps between looks until the interval is set: a rate far too high has ruined a run within the first hundred."""
NEAREST, FARTHEST = 10, 50
"""Smallest interval in steps, and the one where the time of a step is not known."""
GROWS = 1000
"""Steps up to which a look costs about the same: 26 ms on the digits task beside other work, 57 at 2000, 90 at 3500."""
ACTING = 0.05
"""Least share of the time that looks of a run that acts may take: what is found late costs more than that. The first
hundred steps, with a look every twentieth, are exempt. A run that only advises keeps to its share of the budget."""
SPARE = 1.0
"""Seconds that looks of a run that acts may take in all, whatever their share: nobody waits for them, and a run of a
thousand steps of 1 ms, which 5 % would let look three times, can be looked at fifty times for it."""
STUCK = (3, 10, 30)
"""Updates left out in a row at which the navigator looks out of turn: the steps by which it is called stand still."""
HOPELESS = 100
"""Updates left out in a row after which a run that acts for itself is stopped: nothing it could do has helped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One thing to be done on every rank, at one step.

    Args:
        what: "begin" an action, "lift" one, or "remedy": what the session does itself between two batches.
        name: The action.
        action: The action, to begin it or to carry it out.
        why: Why it is lifted.
    """

    what: Literal["begin", "lift", "remedy"]
    name: str
    action: Action | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the navigator asks of the run it steers.

    Args:
        steps: Planned optimizer steps, or None.
        view: The run's log, opened.
        in_force: The actions in force by name.
        healthy: Steps of the checkpoints that are healthy, given all findings.
        able: Which remedies and actions this run can carry out.
        event: Writes an event at the present step.
        warn: Called with a message when a detector or controller fails.
        quiet: Whether alarms are not to be printed.
    """

    steps: int | None
    view: Callable[[], RunView]
    in_force: Callable[[], Mapping[str, Action]]
    healthy: Callable[[tuple[Finding, ...]], tuple[int, ...]]
    able: Callable[[], frozenset[str]]
    event: Callable[..., None]
    warn: Callable[[str], None]
    quiet: bool


class Navigator:
    """Findings, controllers and the arbiter at work on one run; it changes nothing itself, it gives orders.

    It looks at every `interval`-th step. What it concludes follows from the log and from its own state, which is in
    every checkpoint: a resumed run decides alike.

    Args:
        mode: "advise": findings and proposals are logged, live checks are asked for. "act": orders change the run.
        around: The run.
    """

    def __init__(self, mode: Mode, around: Surroundings) -> None:
        self.mode: Mode = mode
        self.interval = FIRST
        self.last: dict[str, dict[str, Any]] = {}
        """What the last live checks found, by name."""
        self.broken = False
        """Whether it has failed; then it gives no orders any more."""
        self._around = around
        self._diagnosing = Diagnosing(around.warn)
        self._state: dict[str, Any] = begin()
        self._view: RunView | None = None
        self._next = 0
        self._afford: float | None = None
        self._seconds: list[float] = []

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All that was found at the last look, worst first."""
        return self._diagnosing.findings

    @property
    def ending(self) -> int | None:
        """The step at which a run that acts began its last stretch; None while no end is in sight."""
        state = self._state["controllers"].get("converge") if self.mode == "act" else None
        return None if state is None else state["since"]

    @property
    def waits(self) -> bool:
        """Whether an act is still to be judged."""
        return bool(self._state["pending"])

    def due(self, step: int) -> bool:
        """Whether this step is one of those at which it looks.

        Args:
            step: Completed optimizer steps.
        """
        return step % self._stride(step) == 0 and step >= self._next

    def _stride(self, step: int) -> int:
        """Steps between looks: in a run that acts twice as many with every doubling of the log, as looks grow dearer.

        By the step alone, so that a resumed run looks at the same steps.
        """
        if self.mode != "act":
            return self.interval
        return self.interval << (min(step, WINDOW) // GROWS).bit_length()

    def consult(self, step: int) -> list[Order]:
        """Diagnose, decide, and log both.

        Args:
            step: Completed optimizer steps.

        Returns:
            What is to be done, in order.
        """
        if self.broken:
            return []
        start = time.perf_counter()
        log = self._look(step)
        situation = Situation(
            step=step,
            steps=self._around.steps,
            findings=self._diagnosing.findings,
            fresh=self._diagnosing.fresh,
            run=log,
            in_force=self._around.in_force(),
            healthy=self._around.healthy(self._diagnosing.findings),
            able=self._around.able(),
            last=self.last,
        )
        turn = navigate(self._state, situation, self.mode)
        self._state = turn.state
        self._report(turn, step)
        self._seconds.append(time.perf_counter() - start)
        if self._afford is not None:  # looks grow dearer with the log
            self._next = step + math.ceil(self._seconds[-1] / self._afford)
        return _orders(turn)

    def finish(self, step: int) -> None:
        """Diagnose a last time, for the log: the run is over.

        Args:
            step: Completed optimizer steps.
        """
        if not self.broken:
            self._look(step)

    def settle(self, step_seconds: float, afford: float) -> int:
        """The interval that keeps diagnosing within what it may take, by the times so far; it is not set yet.

        Args:
            step_seconds: Of a step without measuring.
            afford: Seconds per step that diagnosing may take; a run that acts may take 5 % of the step at least, and a
                second in all.

        Returns:
            Steps, at least 10, up to step 1000. Later a run that acts looks twice as rarely with every doubling of the
            steps; one that only advises waits longer after a look that took longer.
        """
        if self.mode == "act":
            afford = max(afford, ACTING * step_seconds, SPARE / (self._around.steps or math.inf))
        self._afford = afford if afford > 0 and self.mode != "act" else None
        return max(NEAREST, math.ceil(self.seconds / afford) if afford > 0 else FARTHEST)

    @property
    def seconds(self) -> float:
        """Of one look: the median, without the first, which imports."""
        return statistics.median(self._seconds[1:] or self._seconds) if self._seconds else 0.0

    def go_back(self) -> None:
        """The run has gone back: its findings are closed, what was tried is remembered."""
        self._diagnosing.go_back()

    def state_dict(self) -> dict[str, Any]:
        """What decides about the next decision, as plain data."""
        return {
            "interval": self.interval,
            "state": self._state,
            "diagnosing": self._diagnosing.state_dict(),
            "last": self.last,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `state_dict` returned.
        """
        self.interval, self._state, self.last = state["interval"], state["state"], dict(state["last"])
        self._diagnosing.load_state_dict(state["diagnosing"])

    def _look(self, step: int) -> ClippedView:
        if self._view is None:
            self._view = self._around.view()
        else:
            self._view.refresh()
        log = ClippedView(self._view, first=max(0, step - WINDOW), last=step)
        for change, finding in self._diagnosing.look(log, step):
            self._around.event("finding", state=change, finding=finding.as_dict())
            self._say(change, finding, step)
        return log

    def _report(self, turn: Turn, step: int) -> None:
        for name, error in turn.failed.items():
            self._around.warn(f"The controller {name!r} failed and is left out from here on; training goes on. {error}")
        for outcome in turn.outcomes:
            plain = outcome.as_dict()
            self._around.event("outcome", acted=plain.pop("step"), **plain)
        for decision in turn.decisions:
            self._around.event("decision", **{k: v for k, v in decision.as_dict().items() if k != "step"})
            action = decision.proposal.action
            if decision.status == "taken" and action.name not in REMEDIES:
                self._print(f"step {step}: {action.name} {_words(action.arguments)}: {action.reason}")

    def _say(self, change: Change, finding: Finding, step: int) -> None:
        if change != "closed" and finding.alarms:
            self._print(f"step {step}: {finding.severity}: {finding.title}")

    def _print(self, line: str) -> None:
        if not self._around.quiet:
            print(f"dynaxx: {line}", file=sys.stderr)


def _words(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in arguments.items())


def _orders(turn: Turn) -> list[Order]:
    orders: list[Order] = []
    for undo in turn.undo:
        if undo.restore is None:
            orders.append(Order(what="lift", name=undo.name, why=undo.reason))
        else:
            orders.append(Order(what="begin", name=undo.name, action=undo.restore))
    for decision in turn.decisions:
        if decision.status == "taken":
            action = decision.proposal.action
            what: Literal["begin", "remedy"] = "remedy" if action.name in REMEDIES else "begin"
            orders.append(Order(what=what, name=action.name, action=action))
    return orders
