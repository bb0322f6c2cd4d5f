"""Hessian products by linearising the gradient once: many products at one point are then cheap."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dynaxx.core.objective import Objective
from dynaxx.numerics.space import Space


class Linearized:
    """Hv by `torch.func.linearize` of ∇L, forward over reverse, for each microbatch.

    Tracing costs 50 to 280 gradients and keeps every intermediate value: only for hundreds of products at one point.
    It cannot pass activation checkpointing, nor losses that look at the values of tensors.

    Args:
        objective: The loss and the point.
        space: Its parameter space.
    """

    name = "linearize"

    def __init__(self, objective: Objective, space: Space) -> None:
        self._objective = objective
        self._space = space
        self._maps: list[Callable[..., Any]] | None = None
        self.builds = 0

    def reset(self) -> None:
        """Forget the traces: the weights have changed."""
        self._maps = None

    def __call__(self, rows: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """Multiply each row."""
        out = torch.zeros_like(rows)
        with self._objective.prepared(second_order=True):
            if self._maps is None:
                self._maps = [self._trace(i) for i in range(len(self._objective.batches))]
            for product in self._maps:
                for k, row in enumerate(rows):
                    out[k] += self._space.flatten(product(*self._space.split(row)))
        return out

    def _trace(self, i: int) -> Callable[..., Any]:
        self.builds += 1

        def loss(*tensors: Tensor) -> Tensor:
            with self._objective.at(tensors):
                return self._objective.loss(i)

        point = tuple(p.detach() for p in self._objective.parameters)
        gradient = torch.func.grad(loss, argnums=tuple(range(len(point))))
        _, product = torch.func.linearize(gradient, *point)
        return product
