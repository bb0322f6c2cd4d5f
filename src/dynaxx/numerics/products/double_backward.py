"""Hessian products by differentiating ⟨∇L, v⟩: exact, with the graph of ∇L kept from one product to the next."""

import torch
from jaxtyping import Float
from torch import Tensor

from dynaxx.core.objective import Objective
from dynaxx.numerics.space import Space


class DoubleBackward:
    """Hv = ∂⟨∇L, v⟩/∂θ (Pearlmutter 1994), reverse over reverse.

    With one microbatch the graph of ∇L is built once and reused: a product costs 1.2 to 1.7 gradients instead of 2 to
    2.6, for the memory of that graph. With several, each is built for all rows of a call and dropped, so memory stays
    that of one.

    Args:
        objective: The loss and the point.
        space: Its parameter space.
        batched: All rows of a call in one vectorised backward: faster for transformers, slower for small convolutions.
    """

    name = "double_backward"

    def __init__(self, objective: Objective, space: Space, *, batched: bool = False) -> None:
        self._objective = objective
        self._space = space
        self.batched = batched
        self._graph: list[Tensor] | None = None
        self.builds = 0
        """Graphs of ∇L built so far, each the price of a gradient that records itself."""

    def reset(self) -> None:
        """Forget the graph: the weights have changed."""
        self._graph = None

    def __call__(self, rows: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """Multiply each row."""
        objective = self._objective
        out = torch.zeros_like(rows)
        with objective.prepared(second_order=True), torch.enable_grad():
            for i in range(len(objective.batches)):
                graph = self._graph if self._graph is not None else self._build(i)
                self._add(out, graph, rows)
                if len(objective.batches) == 1:
                    self._graph = graph
                del graph  # before the next one is built
        return objective.total(out)

    def _build(self, i: int) -> list[Tensor]:
        self.builds += 1
        loss = self._objective.loss(i)
        if not loss.requires_grad:
            return [torch.zeros_like(p) for p in self._objective.parameters]
        found = torch.autograd.grad(loss, self._objective.parameters, create_graph=True, materialize_grads=True)
        return list(found)

    def _add(self, out: Tensor, graph: list[Tensor], rows: Tensor) -> None:
        live = [j for j, g in enumerate(graph) if g.requires_grad]
        if not live:  # the loss is piecewise linear in the parameters: no curvature
            return
        outputs = [graph[j] for j in live]
        parameters = self._objective.parameters
        if self.batched and rows.shape[0] > 1:
            stacks = [torch.stack(parts) for parts in zip(*(self._space.split(row) for row in rows), strict=True)]
            found = torch.autograd.grad(
                outputs, parameters, [stacks[j] for j in live],
                retain_graph=True, is_grads_batched=True, allow_unused=True,
            )  # fmt: skip
            start = 0
            for part, size in zip(found, self._space.sizes, strict=True):
                if part is not None:
                    out[:, start : start + size] += part.reshape(rows.shape[0], -1).to(out.dtype)
                start += size
            return
        for k, row in enumerate(rows):
            vector = self._space.split(row)
            found = torch.autograd.grad(
                outputs, parameters, [vector[j] for j in live],
                retain_graph=True, materialize_grads=True,
            )  # fmt: skip
            out[k] += self._space.flatten(found)
