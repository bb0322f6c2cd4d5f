"""Multiply the learning rates for a while, whatever schedule the loop has."""

import math

from dynaxx.core.contracts import Actuation
from dynaxx.core.events import StepView
from dynaxx.core.rates import RateFactors
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
        self._factors = RateFactors(reactive=float(factor))

    def __str__(self) -> str:
        return f"learning rates × {self._factors.reactive:g}"

    def before(self, step: StepView) -> None:
        """Put the factor into the step; the actuator applies the product of all of them."""
        step.rates = step.rates * self._factors
