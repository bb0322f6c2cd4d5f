"""Clip the gradient by its total norm before the update."""

import math
from typing import Any, cast

import torch

from dynaxx.core.contracts import Actuation
from dynaxx.core.events import StepView
from dynaxx.errors import BadInput
from dynaxx.numerics.reductions import layer_norms


class GradientClip(Actuation):
    """g ← g · min(1, c / (‖g‖₂ + 1e-6)) over all parameters together, as `torch.nn.utils.clip_grad_norm_` does.

    Right for sharded parameters, whose norm is taken over all ranks (Pascanu, Mikolov and Bengio 2013).

    Args:
        max_norm: The threshold c; positive and finite.

    Raises:
        BadInput: The threshold is not positive and finite.
    """

    def __init__(self, max_norm: float) -> None:
        if not (math.isfinite(max_norm) and max_norm > 0):
            raise BadInput(f"apply('gradient_clip', max_norm=...) must be positive and finite. Got {max_norm}.")
        self.max_norm = float(max_norm)

    def __str__(self) -> str:
        return f"gradient clipped to norm {self.max_norm:g}"

    def before(self, step: StepView) -> None:
        """Multiply in place; without waiting for the norm."""
        # Measured anew: the loop's own clipping or another action may have changed the gradient since the signals did.
        norms = layer_norms(step.gradients, step.layout, step.gradient_factor)
        total = torch.linalg.vector_norm(norms)
        coefficient = torch.clamp(self.max_norm / (total + 1e-6), max=1.0)
        gradients = [g for g in step.gradients if g is not None]
        if gradients:
            cast(Any, torch._foreach_mul_)(gradients, coefficient)  # pyright: ignore[reportPrivateUsage]
        if step.clip is None:
            step.clip = (total, self.max_norm)
