"""Hessian products by differences of gradients: for models whose operations have no second derivative."""

import torch
from jaxtyping import Float
from torch import Tensor

from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput
from dynaxx.numerics.space import Space

STEP = {torch.float32: (3e-4, 3e-3), torch.float64: (1e-8, 6e-6)}
"""Step relative to the weights' norm, one-sided and central: near √u and ∛u of the type's rounding u, where the error
of truncation, ε or ε², meets that of rounding, u/ε."""


class FiniteDifference:
    """Hv ≈ (∇L(θ + εv̂) − ∇L(θ − εv̂)) ‖v‖ / 2ε, or one-sided with the gradient at θ, which costs half.

    The step is a share of ‖θ‖, whatever the length of v. Each evaluation runs at fresh tensors in the parameters'
    places: the weights are never written. Parameters must be at least float32: in half precision the step vanishes.

    Args:
        objective: The loss and the point.
        space: Its parameter space.
        sides: 2, or 1 for one gradient a product at an error of order ε.
        shrink: Factor on the step: a shorter one crosses fewer kinks, and rounds more.
    """

    name = "finite_difference"

    def __init__(self, objective: Objective, space: Space, *, sides: int = 2, shrink: float = 1.0) -> None:
        half = [n for n, p in zip(objective.names, objective.parameters, strict=True) if p.dtype.itemsize < 4]
        if half:
            raise BadInput(
                f"Hessian(mode='finite_difference'): {half[0]!r} is in half precision, where the step vanishes. "
                "Keep parameters in float32 and use autocast."
            )
        self._objective = objective
        self._space = space
        self.sides = sides
        self._shrink = shrink
        self._here: Tensor | None = None
        self.builds = 0

    def reset(self) -> None:
        """Forget the gradient at the point: the weights have changed."""
        self._here = None

    def __call__(self, rows: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """Multiply each row."""
        space = self._space
        point = space.flatten(self._objective.parameters)
        norms = space.norms(torch.cat([point[None], rows]))
        length = float(norms[0]) or 1.0
        step = STEP[space.dtype][self.sides - 1] * self._shrink * length
        out = torch.zeros_like(rows)
        for k, row in enumerate(rows):
            norm = float(norms[k + 1])
            if norm == 0.0:
                continue
            move = row * (step / norm)
            if self.sides == 1:
                if self._here is None:
                    self._here = self._gradient(point)
                out[k] = (self._gradient(point + move) - self._here) * (norm / step)
            else:
                out[k] = (self._gradient(point + move) - self._gradient(point - move)) * (norm / (2 * step))
        return out

    def _gradient(self, point: Tensor) -> Tensor:
        self.builds += 1
        leaves = [t.clone().requires_grad_() for t in self._space.split(point)]
        total = torch.zeros_like(point)
        with self._objective.prepared(), torch.enable_grad(), self._objective.at(leaves):
            for loss in self._objective.parts():
                if loss.requires_grad:
                    total += self._space.flatten(torch.autograd.grad(loss, leaves, materialize_grads=True))
        return self._objective.total(total)
