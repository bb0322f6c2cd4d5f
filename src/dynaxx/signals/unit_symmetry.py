"""Units of a layer that are equal to another one, by layer."""

from collections.abc import Sequence

import torch
from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout, local
from dynaxx.core.records import Column, Cost, Measurement

TOLERANCE = 1e-6
"""Of the largest mark of a layer: units that began alike drift apart by rounding."""


class UnitSymmetry(Signal[Column]):
    """Share of the rows of each layer's first weight matrix that equal another row; 0 where it has no matrix.

    Rows are told apart by their product with one fixed vector, cos 1, cos 2, …. Units that are equal receive equal
    gradients and stay equal. Of shards it is the share within this rank's rows.
    """

    at = Event.GRADS_READY
    cost = Cost(sweeps=1.0)

    def init(self, model: nn.Module, layout: Layout) -> Column:
        """The column, one entry per layer."""
        del model
        return Column(
            name="unit_symmetry", axis=layout.axis, about="fraction of a layer's units that equal another unit"
        )

    def measure(self, state: Column, step: StepView) -> tuple[Column, Sequence[Measurement]]:
        """One product with every matrix, and a sort of its rows."""
        layout = step.layout
        shares = [torch.zeros((), device=layout.device) for _ in layout.layers]
        seen: set[int] = set()
        for parameter, layer in zip(layout.parameters, layout.layer_of, strict=True):
            if layer in seen or parameter.dim() < 2 or layout.layers[layer].kind.startswith("Embedding"):
                continue
            seen.add(layer)
            shares[layer] = _equal(local(parameter.detach()))
        return state, (Measurement(column=state, value=torch.stack(shares)),)


def _equal(weight: torch.Tensor) -> torch.Tensor:
    """Share of the rows that equal another one."""
    rows = torch.view_as_real(weight).flatten(1) if weight.is_complex() else weight.flatten(1)
    if len(rows) < 2 or rows.shape[1] == 0:
        return torch.zeros((), device=weight.device)
    probe = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=torch.float32).cos().to(rows.dtype)
    marks = (rows @ probe).float().sort().values
    near = marks.diff() <= TOLERANCE * marks.abs().amax()
    edge = near.new_zeros(1)
    return (torch.cat([near, edge]) | torch.cat([edge, near])).float().mean()
