"""How findings become acts: what a controller sees, what it proposes and promises, and what may be checked live."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from dynaxx.core.findings import Finding, Log
from dynaxx.core.objective import LossFunction
from dynaxx.core.records import Action, Cost, Receipt

State = TypeVar("State")

Mode = Literal["off", "advise", "act"]
"""off: nothing is looked for. advise: findings and proposals are logged. act: proposals that win are carried out."""
REMEDIES = frozenset({"check", "rollback", "trial"})
"""Actions that the session carries out itself, beside those of the actuator: a live check (arguments: check, and what
it takes), a return to a healthy checkpoint (before: the step that it must lie before; pass_data: whether the batches
since are passed over; further: how many beyond them; then: actions, as dictionaries, that are put into force right
after it), a branch trial (arms: name → list of actions, as dictionaries; steps)."""
ADVICE = "advice"
"""The name of an action that is a word to a person: nothing carries it out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What an act is expected to do, so that it can be judged by the log alone.

    Kept when the median of the column's values over the last quarter of the steps after the act is `below` the bound
    (or `above` it), and all of them are finite.

    Args:
        column: The column that shows it.
        below: Upper bound, or None.
        above: Lower bound, or None.
        steps: Optimizer steps after the act at which it is judged.
    """

    column: str
    below: float | None = None
    above: float | None = None
    steps: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """An act that a controller asks for.

    Args:
        controller: Its file name.
        action: What to do. Its `steps` is its time to live.
        finding: The finding that asks for it; None: a routine of the controller's own.
        cause: The cause that it answers, a key of `CAUSES`, or "".
        promise: What it is expected to do; when it is broken the action is undone. None: cannot be judged or undone.
        level: Place on the ladder, the mildest first: 0 check, 1 skip, 2 clip, 3 rate for a while, 4 rollback,
            5 rollback with a lower rate, 6 stop.
    """

    controller: str
    action: Action
    finding: Finding | None = None
    cause: str = ""
    promise: Promise | None = None
    level: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The proposal as plain data; of the finding its code, name, title, severity and latest stretch."""
        plain = asdict(replace(self, finding=None))
        if self.finding is not None:
            short = {"code": self.finding.code, "name": self.finding.name, "title": self.finding.title}
            plain["finding"] = {**short, "severity": self.finding.severity, "spans": [list(self.finding.spans[-1])]}
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Proposal":
        """Read what `as_dict` gave, also after a way through JSON.

        Args:
            data: The dictionary.

        Returns:
            The proposal; its finding has lost evidence and causes.
        """
        found, promise = data["finding"], data["promise"]
        return cls(
            controller=data["controller"],
            action=Action(**data["action"]),
            finding=None if found is None else Finding.from_dict(found),
            cause=data["cause"],
            promise=None if promise is None else Promise(**promise),
            level=data["level"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the arbiter made of a proposal.

    Args:
        proposal: The proposal.
        status: "taken", "advised" (it would be, were the mode act) or "refused".
        why: The rule that decided.
        step: The last completed step.
    """

    proposal: Proposal
    status: Literal["taken", "advised", "refused"]
    why: str
    step: int

    def as_dict(self) -> dict[str, Any]:
        """The decision as plain data."""
        return {"proposal": self.proposal.as_dict(), "status": self.status, "why": self.why, "step": self.step}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Decision":
        """Read what `as_dict` gave, also after a way through JSON.

        Args:
            data: The dictionary.

        Returns:
            The decision.
        """
        proposal = Proposal.from_dict(data["proposal"])
        return cls(proposal=proposal, status=data["status"], why=data["why"], step=data["step"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of an act, judged by its promise.

    Args:
        proposal: What was done.
        step: When it was done.
        judged: When it was judged.
        kept: Whether the promise was kept.
        measured: The figure that was compared; NaN where there was none.
        undone: Whether the action was lifted because of it.
    """

    proposal: Proposal
    step: int
    judged: int
    kept: bool
    measured: float
    undone: bool

    def as_dict(self) -> dict[str, Any]:
        """The outcome as plain data; a figure that is not finite is None, as JSON has no word for it."""
        plain = asdict(replace(self, proposal=replace(self.proposal, finding=None)))
        measured = self.measured if math.isfinite(self.measured) else None
        return {**plain, "proposal": self.proposal.as_dict(), "measured": measured}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Outcome":
        """Read what `as_dict` gave, also after a way through JSON.

        Args:
            data: The dictionary.

        Returns:
            The outcome.
        """
        return cls(
            proposal=Proposal.from_dict(data["proposal"]),
            step=data["step"],
            judged=data["judged"],
            kept=data["kept"],
            measured=math.nan if data["measured"] is None else data["measured"],
            undone=data["undone"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that a controller may decide by. Everything in it comes from the log, so that a decision can be replayed.

    Args:
        step: Completed optimizer steps.
        steps: Planned ones, or None.
        findings: What the detectors find now, worst first.
        fresh: Names of the findings whose latest stretch is open or ended since the last decision.
        run: The log up to now.
        in_force: Actions in force by name.
        decisions: Earlier decisions that were taken, in order.
        outcomes: Judged acts, in order.
        healthy: Steps of the checkpoints that are healthy, rising.
        able: Which of `REMEDIES` and of the actuator's actions this run can carry out.
        last: What the last `check`s found: name → {"values": …, "step": …}.
    """

    step: int
    steps: int | None
    findings: tuple[Finding, ...]
    fresh: frozenset[str]
    run: Log
    in_force: Mapping[str, Action] = field(default_factory=dict[str, Action])
    decisions: tuple[Decision, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    healthy: tuple[int, ...] = ()
    able: frozenset[str] = frozenset()
    last: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])


class Controller(ABC, Generic[State]):
    """A policy from findings to proposals. Pure: one state and one situation, one answer; its state is plain data."""

    about: ClassVar[str]
    """What it does, in a line."""

    @abstractmethod
    def init(self) -> State:
        """The state before the first decision: numbers, strings, lists and dicts, for the checkpoint."""

    @abstractmethod
    def decide(self, state: State, situation: Situation) -> tuple[State, Sequence[Proposal]]:
        """Propose.

        Args:
            state: What the last call returned.
            situation: Where the run is.

        Returns:
            The next state and the proposals, in no order. The arbiter knows budget, cooldown and hysteresis; a
            controller need not.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePoint:
    """A live run between two steps, for a check: it reads, computes in isolation and leaves no trace.

    Args:
        step: Completed optimizer steps.
        model: The model.
        optimizer: The innermost optimizer.
        loss: `loss_fn(model, batch)` → mean loss of the batch.
        batches: The last training batches, oldest first; the last one belongs to the last completed step.
        starts: The state of model and optimizer before the last step where one is kept, restored by calling it within
            isolation; None where none is kept.
        weight: Examples or tokens of a batch.
        device: Where the model is.
        rate: What the actions in force multiply the learning rates of the optimizer's groups by.
        earlier: Training batches from before those, oldest first, as far as they are kept.
    """

    step: int
    model: nn.Module
    optimizer: Optimizer
    loss: LossFunction
    batches: Sequence[Any]
    weight: Callable[[Any], float]
    device: torch.device
    starts: Callable[[], None] | None = None
    rate: float = 1.0
    earlier: Sequence[Any] = ()


class Check(ABC):
    """A short look at the live state that parts causes which the log cannot; constructed from its options.

    The session runs it in isolation (weights, buffers, gradients, optimizer state and random streams stay bit for bit)
    and writes what it returns into the log as an event of kind "check", where detectors read it.
    """

    cost: ClassVar[Cost]
    """Forward and backward passes of one batch that it takes at most."""

    @abstractmethod
    def look(self, point: LivePoint) -> Mapping[str, Any]:
        """Look.

        Args:
            point: The live run.

        Returns:
            What was found: name → number, string, or list of them. Raises `NotApplicable` with the reason.
        """


def kept(promise: Promise, run: Log, since: int) -> tuple[bool, float] | None:
    """Judge a promise.

    Args:
        promise: What was promised.
        run: The log.
        since: The step of the act.

    Returns:
        Whether it was kept and the figure compared; None while it is too early.

    Example:
        See tests/core/test_navigation.py.
    """
    if len(run.steps) == 0 or int(run.steps[-1]) < since + promise.steps or promise.column not in run.columns:
        return None
    series = run[promise.column]
    window = (series.steps > since + promise.steps * 3 // 4) & (series.steps <= since + promise.steps)
    values = np.asarray(series.values, dtype=np.float64)[window]
    if len(values) == 0:
        return None
    if not np.isfinite(values).all():
        return False, float("nan")
    figure = float(np.median(values))
    below = promise.below is None or figure <= promise.below
    above = promise.above is None or figure >= promise.above
    return below and above, figure


def history(receipts: Sequence[Receipt]) -> dict[str, Action]:
    """The actions in force after some receipts.

    Args:
        receipts: In order.

    Returns:
        Name → action.
    """
    standing: dict[str, Action] = {}
    for receipt in receipts:
        if receipt.status == "begun":
            standing[receipt.action.name] = receipt.action
        elif receipt.status == "ended":
            standing.pop(receipt.action.name, None)
    return standing
