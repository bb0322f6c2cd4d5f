"""Runs the signals that are due, times them, and sets their cadence once."""

import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dynaxx import catalog
from dynaxx.core.contracts import ForwardSignal, Signal
from dynaxx.core.events import Event, Need, StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Measurement
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.reductions import before_norms
from dynaxx.runlog.recorder import Recorder
from dynaxx.session.cadence import CALIBRATION, PRICING, SETTLED, SLOWEST, cadences
from dynaxx.session.forward import ForwardWatch
from dynaxx.session.hooks import quietly
from dynaxx.session.instrument import Instrument
from dynaxx.session.microbatches import Microbatches
from dynaxx.session.own_gradient import OwnGradient
from dynaxx.session.probe_loss import ProbeLoss


class Instruments:
    """The signals of one run.

    Args:
        model: The watched model.
        layout: Its parameters by layer.
        names: Signals to measure.
        recorder: Where measurements go.
        budget: Share of the step time that measuring may take.
        warn: Called with a message when a signal fails and is taken out of service.
        forward: Whether forward signals are measured on this rank.
        probe_loss: The loss that curvature is of; None: it is not known.
        scaled: Whether gradients are scaled while they accumulate.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        names: Sequence[str],
        recorder: Recorder,
        *,
        budget: float,
        warn: Callable[[str], None],
        forward: bool = True,
        probe_loss: ProbeLoss | None = None,
        scaled: bool = False,
    ) -> None:
        self._recorder = recorder
        self.budget = budget
        self._warn = warn
        self._layout = layout
        self._snapshot: list[torch.Tensor] | None = None
        self._update_seconds: list[float] = []
        self._forward_seconds: list[float] = []
        self._steps: list[tuple[float, float, float]] = []
        self._rare = 0.0
        self._pending: list[tuple[Instrument, Any, str, int, Sequence[Measurement]]] = []
        self.calibrated = False
        self.not_applicable: dict[str, str] = {}
        self.instruments: list[Instrument] = []
        self.probe_loss = ProbeLoss(model, None) if probe_loss is None else probe_loss
        self.microbatches = Microbatches(layout)
        self._own = OwnGradient(layout)
        self._scaled = scaled
        self._microbatch_seconds: list[float] = []
        for name in names:
            signal: Signal[Any] = catalog.get("signals", name)()
            if Need.FORWARD in signal.needs and not forward:
                continue
            why = self.probe_loss.never
            if why is not None and Need.CURVATURE in signal.needs and Need.MICROBATCHES not in signal.needs:
                self.not_applicable[name] = why
                continue
            try:
                instrument = Instrument(name, signal, signal.init(model, layout))
            except NotApplicable as reason:
                self.not_applicable[name] = str(reason)
                continue
            instrument.looks = isinstance(signal, ForwardSignal)
            if Need.CURVATURE in signal.needs:
                instrument.dear, instrument.cadence = True, PRICING
            self.instruments.append(instrument)
        self._sort()
        looking = [(i.signal, i.state) for i in self.instruments if isinstance(i.signal, ForwardSignal)]
        self.forward = ForwardWatch(model, looking, self._broken) if looking else None

    @property
    def counts_flops(self) -> bool:
        """Whether a signal asks for the operations of a forward, and they can be counted: not in compiled parts."""
        watch = self.forward
        return any(i.name == "flops" for i in self.instruments) and (watch is None or not watch.late)

    def needs(self, step: int) -> tuple[bool, bool]:
        """What must be prepared for a coming step.

        Args:
            step: Its number.

        Returns:
            Whether its forwards are looked into, and whether its parameters are copied before the update.
        """
        if step % self._quickest:
            return False, False
        due = [i for i in self.instruments if i.signal.needs and step % i.cadence == 0]
        return any(Need.FORWARD in i.signal.needs for i in due), any(Need.UPDATE in i.signal.needs for i in due)

    def forward_begins(self, view: StepView, samples: int) -> None:
        """A training forward begins; if it is not the step's first, a microbatch may be complete.

        Args:
            view: The step, the forward counted.
            samples: Its examples.
        """
        parts = self.microbatches
        if view.batch.forwards == 1:
            parts.begin()
            if view.world_size > 1 and self._apart(view):
                self._own.begin()
        elif parts.arrived and view.world_size == 1 and self._apart(view):
            parts.add()
        parts.arrived = False
        parts.sizes.append(samples)

    def accumulated(self, view: StepView) -> None:
        """The gradient is complete: show the microbatches' parts of it and this rank's, where they were seen.

        Args:
            view: The step.
        """
        if view.world_size > 1 and view.own_square is None:
            view.own_square, seconds = self._own.finish()
            self.microbatches.seconds += seconds
        if view.batch.forwards > 1 and view.microbatches is None:
            view.microbatches = self.microbatches.finish()

    def _apart(self, view: StepView) -> bool:
        """Whether the parts of a step's gradient are to be seen one by one, and can be: not under a gradient scaler.

        They are those of its microbatches, or, as ranks reduce with the last one or with each, those of the ranks.
        """
        if view.step % self._quickest or self._scaled or not self._layout.plain:
            return False
        return any(Need.MICROBATCHES in i.signal.needs and view.step % i.cadence == 0 for i in self.instruments)

    def keep(self, view: StepView) -> None:
        """Copy the parameters before the update, into the same memory each time.

        Args:
            view: The step.
        """
        start = time.perf_counter()
        now = view.parameters
        if self._snapshot is None:
            self._snapshot = [torch.empty_like(p) for p in now]
        torch._foreach_copy_(self._snapshot, now)  # pyright: ignore[reportPrivateUsage]
        view.before = self._snapshot
        before_norms(view)
        self._update_seconds.append(time.perf_counter() - start)

    def compare(self, view: StepView) -> None:
        """Make the copy into what would undo the update, before − after, in place.

        Args:
            view: The step, after the update.
        """
        if view.before is None:
            return
        start = time.perf_counter()
        torch._foreach_sub_(view.before, view.parameters)  # pyright: ignore[reportPrivateUsage]
        self._update_seconds[-1] += time.perf_counter() - start

    def measure(self, event: Event, view: StepView) -> None:
        """Measure every signal of an event that is due; what it gives waits for `commit` or `discard`.

        Args:
            event: `grads_ready` or `step_end`.
            view: The step.
        """
        for instrument in self._always[event] if view.step % self._quickest else self._at[event]:
            if view.step % instrument.cadence or (instrument.looks and self._unseen(instrument.signal, view)):
                continue
            start = 0.0 if self.calibrated else time.perf_counter()
            before = instrument.state
            try:
                if instrument.dear:
                    instrument.state, values = self._measured(instrument, view)
                else:
                    instrument.state, values = instrument.signal.measure(before, view)
            except NotApplicable as reason:
                self._drop(instrument, str(reason))
                continue
            except Exception as error:  # a broken instrument must never stop a training
                self._retire(instrument, error)
                continue
            if values or instrument.state is not before:
                self._pending.append((instrument, before, instrument.stream, view.step, values))
            if not self.calibrated:
                instrument.seconds.append(0.0)
                self._charge(instrument, time.perf_counter() - start)

    def _measured(self, instrument: Instrument, view: StepView) -> tuple[Any, Sequence[Measurement]]:
        """A dear signal's measurement; nothing where there is no loss that is finite."""
        with quietly(), torch.autocast(self._layout.device.type, enabled=False):
            view.objective = self.probe_loss.objective()
            if view.objective is None and view.microbatches is None and view.own_square is None:
                return instrument.state, ()
            try:
                state, values = instrument.signal.measure(instrument.state, view)
            except BadInput:
                if self.probe_loss.finite():
                    raise
                return instrument.state, ()  # the loss itself shows it; it may recover
        instrument.spoke |= bool(values)
        return state, values

    def _charge(self, instrument: Instrument, seconds: float) -> None:
        """Add to the price of a measurement, and to what the step has spent on rare ones."""
        instrument.seconds[-1] += seconds
        self._rare += 0.0 if instrument.signal.every_step else seconds

    def commit(self) -> None:
        """The step is complete: its measurements go to the log."""
        for instrument, _, stream, step, values in self._pending:
            start = 0.0 if self.calibrated else time.perf_counter()
            if values:
                self._recorder.add(stream, step, values)
            if not self.calibrated:  # without it, all that is rare later would be charged to every step
                self._charge(instrument, time.perf_counter() - start)
        self._pending.clear()

    def discard(self) -> None:
        """The update was left out, or its gradients were not complete: nothing has been measured."""
        for instrument, before, *_ in reversed(self._pending):
            instrument.state = before
        self._pending.clear()

    def finish(self, view: StepView) -> bool:
        """The step is over: keep its times for the calibration.

        Args:
            view: The step, its times complete.

        Returns:
            Whether the calibration can be made now.
        """
        if self.calibrated:
            return False
        if self.forward is not None and view.batch.forwards:
            self._forward_seconds.append(self.forward.seconds)
            self._rare += self.forward.seconds
            self.forward.seconds = 0.0
        self._rare += self._update_seconds[-1] if view.before is not None else 0.0
        if self.microbatches.seconds:
            self._microbatch_seconds.append(self.microbatches.seconds)
            self._rare += self.microbatches.seconds
            self.microbatches.seconds = 0.0
        self._steps.append((view.times.total, view.times.measuring, self._rare))
        self._rare = 0.0
        return len(self._steps) >= CALIBRATION

    def step_seconds(self) -> tuple[float, float]:
        """Seconds of a step without measuring, and of what is measured at every step, medians over the steps so far."""
        steps = self._steps[SETTLED:] or self._steps
        return statistics.median(t - m for t, m, _ in steps), statistics.median(max(0.0, m - r) for _, m, r in steps)

    def price(self) -> dict[str, float]:
        """Seconds of one measurement by signal, needs included: its median; of dear ones the lesser of the last two."""
        update = [i for i in self.instruments if Need.UPDATE in i.signal.needs]
        looking = [i for i in self.instruments if Need.FORWARD in i.signal.needs]
        apart = [i for i in self.instruments if Need.MICROBATCHES in i.signal.needs]
        shares = {
            **{i.name: _median(self._update_seconds) / len(update) for i in update},
            **{i.name: _median(self._forward_seconds) / len(looking) for i in looking},
            **{i.name: _median(self._microbatch_seconds) / len(apart) for i in apart},
        }
        own = {i.name: min(i.seconds[-2:]) if i.dear and i.seconds else _median(i.seconds) for i in self.instruments}
        return {name: seconds + shares.get(name, 0.0) for name, seconds in own.items()}

    def plan(self, beside: float = 0.0) -> dict[str, int]:
        """The cadences that keep to the budget by the times measured so far.

        Args:
            beside: Seconds per step that diagnosing takes out of the same budget.
        """
        for instrument in [i for i in self.instruments if i.dear and not i.spoke]:
            why = self.probe_loss.reason or "it measured nothing in the first steps"
            apart = Need.MICROBATCHES in instrument.signal.needs
            self._drop(instrument, f"steps do not accumulate microbatches of equal size, and {why}" if apart else why)
        price = self.price()
        bare, fixed = self.step_seconds()
        rarely = {i.name: price[i.name] for i in self.instruments if not i.signal.every_step}
        return cadences(rarely, fixed + beside, bare, self.budget, dear={i.name for i in self.instruments if i.dear})

    def expected(self) -> float:
        """Share of the step time that measuring will take at the cadences that are set."""
        price = self.price()
        bare, fixed = self.step_seconds()
        spread = sum(price[i.name] / i.cadence for i in self.instruments if not i.signal.every_step)
        return (fixed + spread) / bare if bare > 0 else 0.0

    def settle(self, plan: Mapping[str, int]) -> None:
        """Set the cadences for the rest of the run.

        Args:
            plan: Cadence by signal; every-step signals keep theirs.
        """
        for instrument in self.instruments:
            if not instrument.signal.every_step:
                instrument.cadence = plan.get(instrument.name, instrument.cadence)
        self.calibrated = True
        self._sort()

    def state_dict(self) -> dict[str, Any]:
        """Cadences, and the states that are plain data, for the checkpoint."""
        return {
            "calibrated": self.calibrated,
            "cadences": {i.name: i.cadence for i in self.instruments},
            "states": {i.name: i.state for i in self.instruments if isinstance(i.state, dict)},
            "probe_loss": self.probe_loss.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the checkpointed run would have.

        Args:
            state: What `state_dict` returned.
        """
        self.calibrated = bool(state["calibrated"])
        self.probe_loss.load_state_dict(state.get("probe_loss", {}))
        for instrument in self.instruments:
            unknown = SLOWEST if self.calibrated and instrument.dear else instrument.cadence
            instrument.cadence = int(state["cadences"].get(instrument.name, unknown))
            instrument.state = state["states"].get(instrument.name, instrument.state)
        self._sort()

    def go_back(self, state: Mapping[str, Any]) -> None:
        """Take up the states of an earlier step; cadences that are set stay.

        Args:
            state: What `state_dict` returned then.
        """
        cadences = {i.name: i.cadence for i in self.instruments}
        self.load_state_dict({**state, "calibrated": True, "cadences": cadences} if self.calibrated else state)

    def close(self) -> None:
        """Take every hook out of the model."""
        if self.forward is not None:
            self.forward.close()

    def _sort(self) -> None:
        """Sort by event, so that most steps look at the every-step signals only; cadences are powers of two."""
        for instrument in self.instruments:
            instrument.stream = f"every_{instrument.cadence}"
        self._at = {e: tuple(i for i in self.instruments if i.signal.at is e) for e in Event}
        self._always = {e: tuple(i for i in found if i.signal.every_step) for e, found in self._at.items()}
        self._quickest = min((i.cadence for i in self.instruments if not i.signal.every_step), default=1)

    def _unseen(self, signal: Signal[Any], view: StepView) -> bool:
        """Whether no forward could be seen by a forward signal: a row of nothing would pass for a measurement."""
        if self.forward is None or not isinstance(signal, ForwardSignal):
            return False
        return view.batch.forwards == 0 or self.forward.unheard(signal)

    def _broken(self, signal: ForwardSignal[Any], error: Exception) -> None:
        for instrument in [i for i in self.instruments if i.signal is signal]:
            self._retire(instrument, error)

    def _drop(self, instrument: Instrument, why: str) -> None:
        self.instruments.remove(instrument)
        self._sort()
        self.not_applicable[instrument.name] = why

    def _retire(self, instrument: Instrument, error: Exception) -> None:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{where.filename.rpartition('/')[2]}:{where.lineno}"
        self._drop(instrument, f"failed: {type(error).__name__}: {error} ({place})")
        self._warn(
            f"The signal {instrument.name!r} failed and is off from here on; training goes on. {error!r} at {place}."
        )


def _median(values: list[float]) -> float:
    return statistics.median(values[SETTLED:] or values) if values else 0.0
