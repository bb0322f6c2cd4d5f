"""Where the run is in parameter space: distance from the start, path length, turning, a sketch of the parameters."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout, widest
from dynaxx.core.records import Axis, Column, Cost, Measurement
from dynaxx.numerics.sketch import Sketch

SKETCH = Sketch()
"""One sketch for all runs, so that the trajectories of different runs of one model can be compared."""

_AXIS = Axis(name="sketch", labels=tuple(str(i) for i in range(SKETCH.size)))
_ERROR = f"from a sketch of {SKETCH.size} numbers, relative standard error {SKETCH.relative_error:.1%}"
_DISTANCE = Column(name="trajectory.distance", unit="parameter", about=f"distance from the start, {_ERROR}")
_LENGTH = Column(
    name="trajectory.path_length", unit="parameter", about=f"length of the path through the measured steps, {_ERROR}"
)
_COSINE = Column(name="trajectory.cosine", about="cosine between successive displacements, from a sketch")
_SKETCH = Column(name="trajectory.sketch", axis=_AXIS, unit="parameter", about="CountSketch of the parameters")


class Trajectory(Signal[dict[str, Any]]):
    """Distance ‖θ_t − θ_0‖, path length Σ‖θ_t − θ_s‖ over measured steps s < t, cosine of successive displacements.

    All from CountSketches of 4096 numbers, kept in the log: runs of any size are compared without keeping weights. The
    path is the polygon through the measured steps, and so a lower bound of the path through all steps.
    """

    at = Event.STEP_END
    cost = Cost(sweeps=5.0)  # a product of two tables of signs, that times the parameters, its sum
    unit = "parameter"

    def init(self, model: nn.Module, layout: Layout) -> dict[str, Any]:
        """The sketch of the start; it stays in the checkpoints."""
        del model
        start = SKETCH(layout.local_parameters(), layout)
        # In float32 a long path would stop growing by short steps.
        zero = torch.zeros((), dtype=widest(start.device), device=start.device)
        return {"start": start, "last": start, "direction": None, "length": zero}

    def measure(self, state: dict[str, Any], step: StepView) -> tuple[dict[str, Any], Sequence[Measurement]]:
        """One pass over the parameters."""
        now = SKETCH(step.parameters, step.layout)
        moved = now - state["last"]
        length = state["length"] + moved.norm()
        values = [
            Measurement(column=_SKETCH, value=now),
            Measurement(column=_DISTANCE, value=(now - state["start"]).norm()),
            Measurement(column=_LENGTH, value=length),
        ]
        if state["direction"] is not None:
            cosine = torch.nn.functional.cosine_similarity(moved, state["direction"], dim=0)
            values.append(Measurement(column=_COSINE, value=cosine))
        return {"start": state["start"], "last": now, "direction": moved, "length": length}, values
