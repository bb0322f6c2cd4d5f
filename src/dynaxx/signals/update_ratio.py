"""Size of the update relative to the parameters, by layer and for the whole model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, Need, StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.numerics.reductions import before_norms, update_norms


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    layers: Column
    total: Column


class UpdateRatio(Signal[_Columns]):
    """‖θ_{t+1} − θ_t‖ / ‖θ_t‖ of each layer as really applied; about 1e-3 in many healthy runs (Karpathy 2019).

    A layer of zeros that moves has ratio infinity; one that stays, NaN.
    """

    at = Event.STEP_END
    needs = frozenset({Need.UPDATE})
    cost = Cost(sweeps=1.0)

    def init(self, model: nn.Module, layout: Layout) -> _Columns:
        """The columns: one entry per layer, and one number for the model."""
        del model
        about = "size of the applied update relative to the parameters"
        return _Columns(
            layers=Column(name="update_ratio", axis=layout.axis, about=about),
            total=Column(name="update_ratio.total", about=about + ", whole model"),
        )

    def measure(self, state: _Columns, step: StepView) -> tuple[_Columns, Sequence[Measurement]]:
        """One pass over the update, shared with `update_norm`."""
        update, before = update_norms(step), before_norms(step)
        whole = torch.linalg.vector_norm(update) / torch.linalg.vector_norm(before)
        return state, (
            Measurement(column=state.layers, value=update / before),
            Measurement(column=state.total, value=whole),
        )
