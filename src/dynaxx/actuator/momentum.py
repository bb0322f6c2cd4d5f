"""Lower the momentum for a while: what a gradient that has turned leaves behind is forgotten sooner."""

from typing import Any

from torch.optim import Optimizer

from dynaxx.core.contracts import Actuation
from dynaxx.core.events import StepView
from dynaxx.core.parameters import Layout
from dynaxx.errors import BadInput


class Momentum(Actuation):
    """μ ← min(μ, most) for the step, in every group that has a momentum or, as Adam does, a β₁; put back right after.

    A momentum of μ remembers 1 / (1 − μ) gradients. Without dampening it also multiplies the step for a steady gradient
    by as much, so a lower one needs a higher rate where that product was right.

    Args:
        most: The largest momentum; in [0, 1).

    Raises:
        BadInput: The value is out of range, or no group of the optimizer has a momentum.

    Example:
        `run.apply("momentum", most=0.9)`: SGD with momentum 0.99 steps as with 0.9.
    """

    of_gradient = False

    def __init__(self, most: float = 0.9) -> None:
        if not 0 <= most < 1:
            raise BadInput(f"apply('momentum', most=...) must be in [0, 1). Got {most}.")
        self.most = float(most)
        self._held: list[tuple[dict[str, Any], str, Any]] = []

    def __str__(self) -> str:
        return f"momentum of at most {self.most:g}"

    def check(self, layout: Layout, optimizer: Optimizer) -> None:
        """Some group must have one."""
        del layout
        if not any(momentum_of(group) is not None for group in optimizer.param_groups):
            raise BadInput(f"apply('momentum'): the groups of {type(optimizer).__name__} have neither momentum nor β₁.")

    def before(self, step: StepView) -> None:
        """Lower what is larger."""
        self._held.clear()
        for group in step.optimizer.param_groups:
            kept = momentum_of(group)
            if kept is None or kept <= self.most:
                continue
            name = "momentum" if "betas" not in group else "betas"
            self._held.append((group, name, group[name]))
            group[name] = self.most if name == "momentum" else (self.most, *group[name][1:])

    def after(self, step: StepView) -> None:
        """Put them back exactly."""
        del step
        for group, name, kept in self._held:
            group[name] = kept
        self._held.clear()


def momentum_of(group: dict[str, Any]) -> float | None:
    """The momentum of a parameter group, or Adam's β₁.

    Args:
        group: One of `optimizer.param_groups`.

    Returns:
        The number; None where there is none, or it is a tensor, which compiled optimizers hold on to.
    """
    betas = group.get("betas")
    value = betas[0] if isinstance(betas, tuple | list) and betas else group.get("momentum")
    return float(value) if isinstance(value, float | int) and not isinstance(value, bool) else None
