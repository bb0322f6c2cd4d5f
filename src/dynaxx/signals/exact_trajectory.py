"""Distance from the start and path length from whole copies of the parameters; off unless asked for by name."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout, widest
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.numerics.reductions import layer_norms

_DISTANCE = Column(name="exact_trajectory.distance", unit="parameter", about="distance from the start")
_LENGTH = Column(
    name="exact_trajectory.path_length", unit="parameter", about="length of the path through the measured steps"
)


class ExactTrajectory(Signal[dict[str, Any]]):
    """‖θ_t − θ_0‖ and Σ‖θ_t − θ_s‖ over measured steps, exactly; memory: three further copies of the parameters.

    The default signal `trajectory` has both from sketches, with their error. Ask for this one by
    `watch(..., signals=["default", "exact_trajectory"])`.
    """

    at = Event.STEP_END
    cost = Cost(sweeps=7.0)  # two differences and two norms, one copy
    unit = "parameter"

    def init(self, model: nn.Module, layout: Layout) -> dict[str, Any]:
        """Copies of the start; they stay in the checkpoints."""
        del model
        start = [p.clone() for p in layout.local_parameters()]
        # In float32 a long path would stop growing by short steps.
        zero = torch.zeros((), dtype=widest(layout.device), device=layout.device)
        return {"start": start, "last": [p.clone() for p in start], "length": zero}

    def measure(self, state: dict[str, Any], step: StepView) -> tuple[dict[str, Any], Sequence[Measurement]]:
        """Compare with both copies; the last one is then overwritten."""
        now = step.parameters
        moved = _distance(now, state["last"], step.layout)
        length = state["length"] + moved
        values = (
            Measurement(column=_DISTANCE, value=_distance(now, state["start"], step.layout)),
            Measurement(column=_LENGTH, value=length),
        )
        torch._foreach_copy_(state["last"], now)  # pyright: ignore[reportPrivateUsage]
        return {"start": state["start"], "last": state["last"], "length": length}, values


def _distance(now: Sequence[torch.Tensor], then: Sequence[torch.Tensor], layout: Layout) -> torch.Tensor:
    difference = [a - b for a, b in zip(now, then, strict=True)]
    return torch.linalg.vector_norm(layer_norms(difference, layout))
