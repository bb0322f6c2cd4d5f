"""Model FLOP/s and, where the accelerator's peak is known, model FLOP utilisation."""

from collections.abc import Sequence

from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout, is_compiled
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.errors import NotApplicable
from dynaxx.numerics.flops import peak

_RATE = Column(
    name="flops", unit="FLOP/s", about="matrix-product operations of forward and backward per second, all ranks"
)
_SHARE = Column(
    name="flops.utilisation", about="model FLOP utilisation: achieved over the accelerators' dense 16-bit peak"
)


class Flops(Signal[float | None]):
    """3 × the operations of one training forward, counted once by shape, per second of step time.

    The backward costs twice the forward; recomputation by activation checkpointing is not counted (model FLOPs, as in
    Chowdhery et al. 2022). Not applicable inside a compiled model, whose operations cannot be seen.
    """

    at = Event.STEP_END
    cost = Cost()
    unit = "FLOP/s"

    def init(self, model: nn.Module, layout: Layout) -> float | None:
        """The device's peak, where it is known."""
        if is_compiled(model):
            raise NotApplicable("operations inside a compiled model cannot be seen; they are not counted.")
        return peak(layout.device)

    def measure(self, state: float | None, step: StepView) -> tuple[float | None, Sequence[Measurement]]:
        """Scale the counted forward to this step's samples."""
        batch = step.batch
        if not batch.flops_per_sample or not batch.samples or step.times.total <= 0:
            return state, ()
        rate = 3 * batch.flops_per_sample * batch.samples * step.world_size / step.times.total
        values = [Measurement(column=_RATE, value=rate)]
        if state is not None:
            values.append(Measurement(column=_SHARE, value=rate / (state * step.world_size)))
        return state, values
