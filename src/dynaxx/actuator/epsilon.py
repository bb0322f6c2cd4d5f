"""Bound Adam's ε for a while: from below against spikes, from above where it outweighs the second moments."""

import math
from typing import Any

from torch.optim import Optimizer

from dynaxx.core.contracts import Actuation
from dynaxx.core.events import StepView
from dynaxx.core.parameters import Layout
from dynaxx.errors import BadInput


class Epsilon(Actuation):
    """ε ← min(max(ε, value), most) for the step, in every parameter group that has one; put back right after it.

    From below a guard against spikes: where the second moment of rarely used coordinates has decayed to nothing, the
    first gradient after it makes a step of full size (Molybog et al. 2023). Optimizers put ε outside the root, so in
    units of the gradient; 1e-6 instead of 1e-8 is the usual switch. From above, since where ε outweighs the root steps
    are g/ε, gradient descent with a tiny rate.

    Args:
        value: The smallest ε; positive and finite, or 0 where there is a largest one.
        most: The largest ε; None: none.

    Raises:
        BadInput: A value is out of range, or no group of the optimizer has an ε.
    """

    of_gradient = False

    def __init__(self, value: float = 1e-6, most: float | None = None) -> None:
        if not (math.isfinite(value) and (value > 0 or (value == 0 and most is not None))):
            raise BadInput(f"apply('epsilon', value=...) must be positive and finite. Got {value}.")
        if most is not None and not (math.isfinite(most) and most > 0 and most >= value):
            raise BadInput(f"apply('epsilon', most=...) must be positive, finite and at least {value:g}. Got {most}.")
        self.value, self.most = float(value), math.inf if most is None else float(most)
        self._held: list[tuple[dict[str, Any], float]] = []

    def __str__(self) -> str:
        return f"ε within [{self.value:g}, {'∞' if self.most == math.inf else format(self.most, 'g')}]"

    def check(self, layout: Layout, optimizer: Optimizer) -> None:
        """Some group must have an ε."""
        del layout
        if not any(isinstance(group.get("eps"), float) for group in optimizer.param_groups):
            raise BadInput(
                f"apply('epsilon'): the groups of {type(optimizer).__name__} have no ε; those of Adam and its kin do."
            )

    def before(self, step: StepView) -> None:
        """Move what is outside to the bound."""
        self._held.clear()
        for group in step.optimizer.param_groups:
            kept = group.get("eps")
            if isinstance(kept, float) and not self.value <= kept <= self.most:
                self._held.append((group, kept))
                group["eps"] = min(max(kept, self.value), self.most)

    def after(self, step: StepView) -> None:
        """Put them back exactly."""
        del step
        for group, kept in self._held:
            group["eps"] = kept
        self._held.clear()
