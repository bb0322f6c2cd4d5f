"""By how much the training loop's own gradient clipping shrank the gradient."""

from collections.abc import Sequence

import torch
from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Column, Cost, Measurement


class ClipCoefficient(Signal[Column]):
    """min(1, c / (‖g‖ + 1e-6)) of `torch.nn.utils.clip_grad_norm_` with threshold c: 1 where clipping did nothing."""

    at = Event.STEP_END
    every_step = True
    cost = Cost()

    def init(self, model: nn.Module, layout: Layout) -> Column:
        """The column, one number a step."""
        del model, layout
        return Column(
            name="clip_coefficient", about="factor by which the loop's gradient clipping multiplied the gradient"
        )

    def measure(self, state: Column, step: StepView) -> tuple[Column, Sequence[Measurement]]:
        """No pass over anything: the norm is the one that clipping computed."""
        if step.clip is None:
            return state, ()
        total, threshold = step.clip
        return state, (Measurement(column=state, value=torch.clamp(threshold / (total + 1e-6), max=1.0)),)
