"""Which pass over the data the step belongs to."""

from collections.abc import Sequence

from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Column, Cost, Measurement


class Epoch(Signal[Column]):
    """Completed passes plus the done share of the current one; known where batches come from `run.batches`."""

    at = Event.STEP_END
    every_step = True
    cost = Cost()
    unit = "passes"

    def init(self, model: nn.Module, layout: Layout) -> Column:
        """The column, one number a step."""
        del model, layout
        return Column(name="epoch", unit=self.unit, dtype="float64", about="passes over the training data")

    def measure(self, state: Column, step: StepView) -> tuple[Column, Sequence[Measurement]]:
        """Read the position in the data."""
        if step.batch.epoch is None:
            return state, ()
        return state, (Measurement(column=state, value=step.batch.epoch),)
