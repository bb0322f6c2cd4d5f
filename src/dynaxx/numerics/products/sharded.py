"""Hessian products where parameters are DTensors and the loss itself computes on DTensors."""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor

from dynaxx.core.objective import Objective
from dynaxx.core.parameters import aligned, is_sharded
from dynaxx.numerics.space import Space


class Sharded:
    """Double backward by DTensors: torch does the communication, vectors stay cut as the parameters are.

    For models whose forward takes DTensors (`distribute_module`, tensor parallelism), each rank with the same batch.
    Models under FSDP2 do not need it: `Objective.local` makes them a function of plain shards.

    Args:
        objective: The loss and the point.
        space: Its parameter space.
    """

    name = "sharded"

    def __init__(self, objective: Objective, space: Space) -> None:
        self._objective = objective
        self._space = space
        self.builds = 0

    def reset(self) -> None:
        """Nothing is kept."""

    def __call__(self, rows: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """Multiply each row."""
        objective, parameters = self._objective, self._objective.parameters
        out = torch.zeros_like(rows)
        with objective.prepared(second_order=True), torch.enable_grad():
            for loss in objective.parts():
                self.builds += 1
                graph = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
                graph = [aligned(g, p) for g, p in zip(graph, parameters, strict=True)]
                live = [j for j, g in enumerate(graph) if g.requires_grad]
                for k, row in enumerate(rows):
                    vector = [_like(v, p) for v, p in zip(self._space.split(row), parameters, strict=True)]
                    found = torch.autograd.grad(
                        [graph[j] for j in live], parameters, [vector[j] for j in live],
                        retain_graph=True, materialize_grads=True,
                    )  # fmt: skip
                    out[k] += self._space.flatten([aligned(f, p) for f, p in zip(found, parameters, strict=True)])
        return objective.total(out)


def _like(part: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part, as a DTensor where the parameter is one."""
    if not is_sharded(parameter):
        return part
    there = cast(Any, parameter)
    return DTensor.from_local(
        part, there.device_mesh, there.placements, run_check=False, shape=there.shape, stride=there.stride()
    )
