"""Examples that one update was computed from: batch × accumulation × ranks."""

from collections.abc import Sequence

from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Column, Cost, Measurement


class EffectiveBatch(Signal[Column]):
    """B × accumulation × ranks, from the leading dimension of what went into the model's training forwards."""

    at = Event.STEP_END
    every_step = True
    cost = Cost()
    unit = "examples"

    def init(self, model: nn.Module, layout: Layout) -> Column:
        """The column, one number a step."""
        del model, layout
        return Column(name="effective_batch", unit=self.unit, about="examples behind one update, over all ranks")

    def measure(self, state: Column, step: StepView) -> tuple[Column, Sequence[Measurement]]:
        """Read what the forward hook counted."""
        if step.batch.samples == 0:
            return state, ()
        return state, (Measurement(column=state, value=float(step.batch.samples * step.world_size)),)
