"""Raise Adam's ε for a while: coordinates with a tiny second moment then take smaller steps."""

import math
from typing import Any

from torch.optim import Optimizer

from dynaxx.core.contracts import Actuation
from dynaxx.core.events import StepView
from dynaxx.core.parameters import Layout
from dynaxx.errors import BadInput


class Epsilon(Actuation):
    """ε ← max(ε, value) for the step, in every parameter group that has one; put back right after it.

    A guard against spikes where the second moment of rarely used coordinates decays to nothing, and the first gradient
    after it makes a step of full size (Molybog et al. 2023). Optimizers put ε outside the root, so in units of the
    gradient; 1e-6 instead of 1e-8 is the usual switch.

    Args:
        value: The smallest ε; positive and finite.

    Raises:
        BadInput: The value is not positive and finite, or no group of the optimizer has an ε.
    """

    of_gradient = False

    def __init__(self, value: float = 1e-6) -> None:
        if not (math.isfinite(value) and value > 0):
            raise BadInput(f"apply('epsilon', value=...) must be positive and finite. Got {value}.")
        self.value = float(value)
        self._held: list[tuple[dict[str, Any], float]] = []

    def __str__(self) -> str:
        return f"ε of at least {self.value:g}"

    def check(self, layout: Layout, optimizer: Optimizer) -> None:
        """Some group must have an ε."""
        del layout
        if not any(isinstance(group.get("eps"), float) for group in optimizer.param_groups):
            raise BadInput(
                f"apply('epsilon'): the groups of {type(optimizer).__name__} have no ε; those of Adam and its kin do."
            )

    def before(self, step: StepView) -> None:
        """Raise what is smaller."""
        self._held.clear()
        for group in step.optimizer.param_groups:
            kept = group.get("eps")
            if isinstance(kept, float) and kept < self.value:
                self._held.append((group, kept))
                group["eps"] = self.value

    def after(self, step: StepView) -> None:
        """Put them back exactly."""
        del step
        for group, kept in self._held:
            group["eps"] = kept
        self._held.clear()
