"""Hessian products by linearising the gradient once: many products at one point are then cheap."""

import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput
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
        with self._objective.prepared(second_order=True), _without_statistics(self._objective.model):
            if self._maps is None:
                self._maps = [self._trace(i) for i in range(len(self._objective.batches))]
            for i, product in enumerate(self._maps):
                for k, row in enumerate(rows):
                    self._objective.seed(i)  # the trace draws its random numbers when it runs, in the forward's order
                    out[k] += self._space.flatten(product(*self._space.split(row)))
        return self._objective.total(out)

    def _trace(self, i: int) -> Callable[..., Any]:
        self.builds += 1

        def loss(*tensors: Tensor) -> Tensor:
            with self._objective.at(tensors), _Refusing():
                return self._objective.loss(i)

        point = tuple(p.detach() for p in self._objective.parameters)
        gradient = torch.func.grad(loss, argnums=tuple(range(len(point))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's tracer about itself: deprecated scripting, folded constants
            _, product = torch.func.linearize(gradient, *point)
            self._objective.seed(i)
            product(*point)  # constants are folded at the first call
        return product


class _Refusing(TorchFunctionMode):
    """Stops at losses that torch 2.13 cannot trace: the first would end the process, the second gives NaN."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (nn.functional.mse_loss, nn.functional.binary_cross_entropy_with_logits):
            raise BadInput(
                f"Hessian(mode='linearize'): torch cannot trace the second derivative of {func.__name__}. "
                "Write the loss out, as (a - b).square().mean(), or take mode='double_backward'."
            )
        return func(*args, **(kwargs or {}))


@contextmanager
def _without_statistics(model: nn.Module) -> Generator[None]:
    """Batch normalisation in training mode keeps no running statistics, which a traced function may not write."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    tracking = [m for m in model.modules() if isinstance(m, kinds) and m.training and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
