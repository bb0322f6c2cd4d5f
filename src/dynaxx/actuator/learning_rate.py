"""Multiply the learning rates for a while, whatever schedule the loop has."""

import math
from typing import Any

import torch

from dynaxx.core.contracts import Actuation
from dynaxx.core.events import StepView
from dynaxx.errors import BadInput


class LearningRate(Actuation):
    """η ← factor · η for the step, in every parameter group; put back right after it.

    The scheduler never sees the factor, so the base schedule goes on as if nothing had happened.

    Args:
        factor: What the rates are multiplied by; positive and finite.

    Raises:
        BadInput: The factor is not positive and finite.
    """

    of_gradient = False  # some optimizers read the rate before they call the closure

    def __init__(self, factor: float) -> None:
        if not (math.isfinite(factor) and factor > 0):
            raise BadInput(f"apply('learning_rate', factor=...) must be positive and finite. Got {factor}.")
        self.factor = float(factor)
        self._held: list[tuple[dict[str, Any], Any]] = []

    def __str__(self) -> str:
        return f"learning rates × {self.factor:g}"

    def before(self, step: StepView) -> None:
        """Scale the rates; one that is a tensor is changed in place, since compiled optimizers hold on to it."""
        step.rate_factor *= self.factor
        for group in step.optimizer.param_groups:
            rate = group.get("lr")
            if isinstance(rate, torch.Tensor):
                self._held.append((group, rate.clone()))
                rate.mul_(self.factor)
            elif rate is not None:
                self._held.append((group, rate))
                group["lr"] = rate * self.factor

    def after(self, step: StepView) -> None:
        """Put the rates back exactly."""
        del step
        for group, rate in self._held:
            if isinstance(rate, torch.Tensor):
                group["lr"].copy_(rate)
            else:
                group["lr"] = rate
        self._held.clear()
