"""What steers a run: the navigator's orders carried out, and what is done by hand in the same way."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dynaxx import catalog
from dynaxx.actuator import Actuator
from dynaxx.checkpoints.health import PROBATION
from dynaxx.checkpoints.save_policy import Reason
from dynaxx.core.chosen import bare_model
from dynaxx.core.findings import Finding
from dynaxx.core.navigation import REMEDIES, LivePoint, Mode
from dynaxx.core.objective import LossFunction
from dynaxx.core.records import Action, Receipt
from dynaxx.core.task import leading
from dynaxx.errors import BadInput, DynaxxError, NotApplicable
from dynaxx.runlog import LogWriter, open_run
from dynaxx.runlog.recorder import Recorder
from dynaxx.session.arms import divided, scaled
from dynaxx.session.data import Data
from dynaxx.session.hooks import Hooks
from dynaxx.session.instruments import Instruments
from dynaxx.session.live import Live
from dynaxx.session.navigator import HOPELESS, STUCK, Navigator, Order, Surroundings
from dynaxx.session.recent import NOT_KEPT, Recent
from dynaxx.session.remedies import Remedies, plain
from dynaxx.session.rollback import Rollback, critical
from dynaxx.session.saving import Saving
from dynaxx.session.training import Training
from dynaxx.session.trial import HELD, NOTHING, Trials

GUARD = Action(
    name="skip",
    arguments={"when": "gross"},
    reason="the first rung: no update that is not finite, or grossly too large, is ever taken",
)
"""In force from the start of a run that acts for itself."""
NO_BATCHES = "the loop does not take its batches from run.batches(loader)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a run that steering works with.

    Args:
        folder: The run's own.
        training: What is trained.
        live: The loop as its hooks see it.
        hooks: The hooks.
        data: The position in the data.
        instruments: The signals.
        actuator: The only writer.
        recorder: Where measurements wait.
        writer: The log; None on ranks other than the first.
        saving: The checkpoints.
        loss: The loss of a batch; None: it is not known.
        steps: Planned optimizer steps, or None.
        quiet: Whether nothing is printed.
        event: Writes an event at the present step.
        warn: Writes and issues a warning.
        receipt: Writes a receipt.
    """

    folder: Path
    training: Training
    live: Live
    hooks: Hooks
    data: Data
    instruments: Instruments
    actuator: Actuator
    recorder: Recorder
    writer: LogWriter | None
    saving: Saving
    loss: LossFunction | None
    steps: int | None
    quiet: bool
    event: Callable[..., None]
    warn: Callable[[str], None]
    receipt: Callable[[Receipt], None]


class Steering:
    """Carries out what the navigator orders, at the same step on every rank, and what the user asks for by hand.

    Args:
        mode: "off", "advise" or "act".
        parts: The run.
        save: Saves a checkpoint with the facts that it is given.
    """

    def __init__(self, mode: Mode, parts: Parts, save: Callable[..., Any]) -> None:
        self.mode: Mode = mode
        self.accumulates = False
        """Whether the loop asks how many batches to take to an update."""
        self.accumulate = 1
        """Batches to an update where no action says otherwise."""
        self.went_back: Callable[[], None] = lambda: None
        """Called after a rollback: steps come again."""
        self._parts = parts
        self._save = save
        self._begun = False
        self.event = parts.event  # writes an event at the present step
        self.recent = Recent(keep=mode != "off")
        self.rollbacks = Rollback(
            training=parts.training,
            checkpoints=parts.saving.checkpoints,
            live=parts.live,
            data=parts.data,
            instruments=parts.instruments,
            actuator=parts.actuator,
            recorder=parts.recorder,
            writer=parts.writer,
            event=parts.event,
        )
        rates = parts.actuator.rates
        self.trials = Trials(parts.training, parts.live.layout, parts.hooks, rates, parts.loss, parts.steps)
        self.remedies = Remedies(
            live=parts.live,
            point=self._point,
            rollback=self._roll_back,
            trial=self._try,
            event=parts.event,
            receipt=parts.receipt,
            first=parts.training.rank == 0,
        )
        self.navigator: Navigator | None = None
        if mode != "off":
            around = Surroundings(
                steps=parts.steps,
                view=lambda: open_run(parts.folder),
                in_force=lambda: parts.actuator.in_force,
                healthy=self._healthy,
                able=self._able,
                event=parts.event,
                warn=parts.warn,
                quiet=parts.quiet,
            )
            self.navigator = Navigator(mode, around)
            self.remedies.findings = lambda: self.navigator.findings if self.navigator else ()
            self.remedies.found = self._found
            parts.live.after_step = self._after_step
            parts.saving.alarms = lambda: critical(self.remedies.findings())
            parts.saving.probation = min(PROBATION, max(20, (parts.steps or PROBATION * 20) // 20))
        parts.data.between = self._between

    def begin(self) -> None:
        """Put into force what a run that acts for itself begins with."""
        if self.mode == "act" and GUARD.name not in self._parts.actuator.in_force:
            self._parts.actuator.begin(GUARD, self._parts.live.step)

    def settle(self, step_seconds: float, afford: float) -> None:
        """Set the interval between looks, once and for good; on every rank alike.

        Args:
            step_seconds: Of a step without measuring.
            afford: Seconds per step that looks may take.
        """
        if self.navigator is not None:
            interval = self.navigator.settle(step_seconds, afford)
            self.navigator.interval = self._parts.training.from_first(interval) if self.mode == "act" else interval

    @property
    def seconds_per_step(self) -> float:
        """What diagnosing costs on average."""
        return 0.0 if self.navigator is None else self.navigator.seconds / self.navigator.interval

    def as_dict(self) -> dict[str, Any] | None:
        """How often the log is diagnosed and what that costs, for the log; None where it is not."""
        if self.navigator is None:
            return None
        return {"mode": self.mode, "interval": self.navigator.interval, "seconds": self.navigator.seconds}

    def batch(self, batch: Any) -> None:
        """A batch is handed to the loop.

        Args:
            batch: The batch.
        """
        self.recent.add(batch)
        self._parts.instruments.probe_loss.offer(batch)

    def save_due(self, validation: Sequence[tuple[int, float]]) -> Reason | None:
        """Whether a checkpoint is due; under several ranks, whose clocks differ, the first one's answer: a collective.

        Args:
            validation: Step and validation loss of the evaluations so far, in order.

        Returns:
            Why; None: not now.
        """
        due = self._parts.saving.policy.due(self._parts.live.step, time.monotonic(), validation)
        return self._parts.training.from_first(due)

    @property
    def ending(self) -> int | None:
        """The step at which the last stretch of a run that converges began; None while no end is in sight."""
        return None if self.navigator is None else self._parts.training.from_first(self.navigator.ending)

    def finish(self) -> None:
        """Diagnose a last time, for the log."""
        if self.navigator is not None and self._parts.writer is not None and self._parts.live.step > 0:
            self._guarded(lambda navigator: navigator.finish(self._parts.live.step))

    def state_dict(self) -> dict[str, Any]:
        """What decides about the next act, as plain data."""
        return {
            "navigator": None if self.navigator is None else self.navigator.state_dict(),
            "waiting": self.remedies.state_dict(),
            "rollbacks": self.rollbacks.state_dict(),
            "trials": self.trials.spent,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `state_dict` returned; an older checkpoint has none of it.
        """
        if not state:
            return
        if self.navigator is not None and state["navigator"] is not None:
            self.navigator.load_state_dict(state["navigator"])
        self.remedies.load_state_dict(state["waiting"])
        self.rollbacks.load_state_dict(state["rollbacks"])
        self.trials.spent = float(state["trials"])

    def ask_rollback(self, before: int, data: Literal["pass", "rewind"], then: Sequence[Action], reason: str) -> None:
        """Have the run go back before the next batch.

        Args:
            before: The checkpoint must lie before this step.
            data: "pass" or "rewind".
            then: Actions to put into force at once.
            reason: Why, in words.

        Raises:
            BadInput: An option is out of range.
            NotApplicable: The loop does not take its batches from the run.
        """
        if data not in ("pass", "rewind"):
            raise BadInput(f"run.rollback(data=...) must be 'pass' or 'rewind'. Got {data!r}.")
        if before < 1:
            raise BadInput(f"run.rollback(before=...) must be a step, at least 1. Got {before}.")
        for action in then:
            catalog.get("actions", action.name)(**action.arguments)  # out of range is said now, not at the next batch
        if not self._parts.data.used:
            raise NotApplicable(f"run.rollback(): {NO_BATCHES}, so there is no moment at which it could go back.")
        arguments = {"before": before, "pass_data": data == "pass", "then": [plain(action) for action in then]}
        self.remedies.ask(Action(name="rollback", arguments=arguments, reason=reason))

    def _between(self) -> None:
        """Before a batch is fetched."""
        if not self._begun:
            self._begun = True
            if self.mode == "act" and self._parts.live.step == 0:
                # What a rate that is far too high ruins before the first save is due.
                self._save(keep=self._parts.saving.keep, beginning=True)
        self.remedies.carry_out()

    def _after_step(self, left_out: int) -> None:
        """A step has ended, or an update was left out, so many in a row."""
        assert self.navigator is not None
        training = self._parts.training
        if left_out:
            if left_out == HOPELESS and self.mode == "act":
                reason = f"{HOPELESS} updates in a row had to be left out: their gradients are not finite"
                self._parts.actuator.begin(Action(name="stop", reason=reason), self._parts.live.step)
            if left_out not in STUCK:
                return
        elif not self.navigator.due(self._parts.live.step):
            return
        orders: list[Order] = []
        if training.rank == 0:
            orders = self._guarded(lambda navigator: navigator.consult(self._parts.live.step)) or []
        for order in training.from_first(orders) if self.mode == "act" else orders:
            self._carry_out(order)

    def _guarded(self, call: Callable[[Navigator], Any]) -> Any:
        """A defect of the navigator's own must not stop a training either: it is off from there on."""
        assert self.navigator is not None
        if not self._parts.folder.is_dir():  # its disk is gone, which the log's writer has said
            return None
        try:
            with self._parts.recorder.read_within(self._parts.live.current), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of NumPy, about values that are not finite
                return call(self.navigator)
        except Exception as error:
            self.navigator.broken = True
            self._parts.warn(f"The navigator failed and is off from here on; training goes on. {error!r}")
            return None

    def _carry_out(self, order: Order) -> None:
        actuator, step = self._parts.actuator, self._parts.live.step
        if order.what == "lift":
            actuator.lift(order.name, step, order.why)
        elif order.what == "remedy" and order.action is not None:
            self.remedies.ask(order.action)
        elif order.action is not None:
            try:
                actuator.begin(order.action, step)
            except DynaxxError as error:
                self._parts.receipt(Receipt(action=order.action, step=step, status="refused", detail=str(error)))

    def _able(self) -> frozenset[str]:
        """Which remedies and actions this run can carry out."""
        able = set(catalog.names("actions"))
        if not self.accumulates:
            able.discard("accumulate")
        if not any(isinstance(group.get("eps"), float) for group in self._parts.training.optimizer.param_groups):
            able.discard("epsilon")
        if self._parts.data.used:
            able.add("rollback")
            if self._parts.loss is not None and not self._parts.training.sharded:
                able.add("check")
            if self.trials.why_not is None:
                able.add("trial")
        return frozenset(able)

    def _healthy(self, findings: Sequence[Finding]) -> tuple[int, ...]:
        if not (self.navigator is not None and self.navigator.waits) and not any(f.alarms for f in findings):
            return ()  # nobody asks, and listing reads every manifest
        self._parts.saving.judge(self._parts.live.step)
        return tuple(sorted({info.step for info in self.rollbacks.reachable(findings)}))

    def _found(self, name: str, values: Mapping[str, Any], step: int) -> None:
        if self.navigator is not None:
            self.navigator.last[name] = {"values": dict(values), "step": step}

    def _point(self) -> LivePoint:
        parts = self._parts
        if parts.loss is None:
            raise NotApplicable("no loss is known: give watch(..., loss=loss_fn)")
        if parts.training.sharded:
            raise NotApplicable("parameters are split over ranks: one rank alone cannot look at them")
        if not self.recent.batches:
            raise NotApplicable(NO_BATCHES if self.mode != "off" else NOT_KEPT)
        return LivePoint(
            step=parts.live.step,
            model=bare_model(parts.training.model),
            optimizer=parts.training.optimizer,
            loss=parts.loss,
            batches=self.recent.batches,
            earlier=self.recent.earlier,
            weight=lambda batch: float(leading(batch) or 1),
            device=parts.live.layout.device,
            rate=parts.actuator.rate,
        )

    def _roll_back(
        self,
        before: int,
        findings: Sequence[Finding],
        *,
        data: Literal["pass", "rewind"],
        then: Sequence[Action],
        further: int,
    ) -> None:
        self._parts.saving.judge(self._parts.live.step)
        first = [action for action in then if action.name not in REMEDIES]
        self.rollbacks.to(before, findings, data=data, then=first, further=further)
        for action in then:
            if action.name in REMEDIES:
                self.remedies.ask(action)
        self.recent.clear()
        if self.navigator is not None:
            self.navigator.go_back()
        self.went_back()
        # So that a resume goes on with the new course and not with the old.
        self._save(keep=self._parts.saving.keep, rolled_back=True)

    def _try(self, arms: Mapping[str, Sequence[Action]], steps: int, *, scale: float, reason: str) -> None:
        parts, each = self._parts, self.batches_per_update
        if self.trials.why_not is None and not self.trials.affordable(len(arms) + 1, steps, parts.live.step, each):
            raise NotApplicable(f"a trial of {len(arms) + 1} arms over {steps} steps is beyond the share for trials")
        ahead = parts.data.ahead(steps * each + HELD)
        batches, held = divided(ahead, steps * each, self.recent.batches, parts.data.length)
        winner, tried, seconds = self.trials.compare(arms, batches, held, parts.actuator.state_dict(), parts.live.step)
        parts.live.spent(seconds)
        parts.event(
            "trial",
            arms={arm.name: {"loss": arm.mean, "p": arm.p} for arm in tried},
            winner=winner,
            steps=steps,
            held=len(held),
            spent=self.trials.spent,
            seconds=seconds,
            reason=reason,
        )
        for action in arms.get(winner, ()) if winner != NOTHING else ():
            parts.actuator.begin(scaled(action, scale), parts.live.step)

    @property
    def batches_per_update(self) -> int:
        """How many batches the loop is to take to an update."""
        action = (self.trials.acting or self._parts.actuator).in_force.get("accumulate")
        return self.accumulate if action is None else int(action.arguments["batches"])
