"""Multiply the gradient before the update."""

import math
from typing import Any, cast

import torch

from dynaxx.core.contracts import Actuation
from dynaxx.core.events import StepView
from dynaxx.errors import BadInput


class GradientScale(Actuation):
    """g ← factor · g for every parameter.

    Args:
        factor: What gradients are multiplied by; finite and not negative.

    Raises:
        BadInput: The factor is negative or not finite.
    """

    def __init__(self, factor: float) -> None:
        if not (math.isfinite(factor) and factor >= 0):
            raise BadInput(f"apply('gradient_scale', factor=...) must be finite and not negative. Got {factor}.")
        self.factor = float(factor)

    def __str__(self) -> str:
        return f"gradients × {self.factor:g}"

    def before(self, step: StepView) -> None:
        """Scale in place, one fused operation."""
        gradients = [g for g in step.gradients if g is not None]
        if gradients:
            cast(Any, torch._foreach_mul_)(gradients, self.factor)  # pyright: ignore[reportPrivateUsage]
