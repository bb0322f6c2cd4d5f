"""Which phase of a plan a step belongs to, and by what the phase multiplies the learning rates."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.phases import Phased


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    phase: Column
    rate: Column
    release: Column


class PhaseNumber(Signal[_Columns]):
    """The number of the phase that has taken the step, from 0; measured where the optimizer is a `Phased`.

    The column lr has its factor phase.rate already. Right behind a switch each layer's step is multiplied by a factor
    of its own too, the smallest of which is phase.release. Both have rows for the steps in which they are not 1.
    """

    at = Event.STEP_END
    every_step = True
    cost = Cost()
    unit = "phase"

    def init(self, model: nn.Module, layout: Layout) -> _Columns:
        """The columns, one number a step."""
        del model, layout
        return _Columns(
            phase=Column(name="phase", unit=self.unit, dtype="float64", about="number of the phase, from 0"),
            rate=Column(name="phase.rate", dtype="float64", about="largest factor of the phase in the learning rates"),
            release=Column(name="phase.release", dtype="float64", about="smallest factor of a layer's step"),
        )

    def measure(self, state: _Columns, step: StepView) -> tuple[_Columns, Sequence[Measurement]]:
        """Read the optimizer, which goes on to the next phase behind the hooks of the step."""
        optimizer = step.optimizer
        if not isinstance(optimizer, Phased):
            return state, ()
        found = [Measurement(column=state.phase, value=float(optimizer.phase))]
        for column, value in ((state.rate, max(optimizer.rates)), (state.release, min(optimizer.factors))):
            if value != 1.0:
                found.append(Measurement(column=column, value=value))
        return state, tuple(found)
