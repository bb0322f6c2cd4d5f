"""Faults of precision: gradients that flush to zero or overflow, as a half-precision backward would do it."""

from random import Random

import torch
from torch import nn
from torch.optim import Optimizer

from dynaxx.rescue.alteration import Fault, log_uniform


class Underflow(Fault):
    """Gradients pass through float16 at a loss scale that is far too small."""

    name = "underflow"
    codes = ("D16", "D1", "D9", "D10", "D12", "D20", "D28")
    causes = ("underflow", "loss_scale_stuck")

    def __init__(self, random: Random) -> None:
        self.scale = log_uniform(random, 1e-8, 1e-6)

    def before_update(self, step: int, steps: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Round what is too small to zero."""
        for p in model.parameters():
            if p.grad is not None:
                p.grad.copy_((p.grad * self.scale).half().float() / self.scale)


class ScaleStuck(Fault):
    """The loss scale stays so high that most gradients overflow, and their updates are left out."""

    name = "scale_stuck"
    codes = ("D16", "D9", "D10", "D12", "D5")
    causes = ("loss_scale_stuck", "overflow")

    def __init__(self, random: Random) -> None:
        self.quantile = random.uniform(0.02, 0.1)
        self._largest: list[float] = []

    def before_update(self, step: int, steps: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Leave the update out unless its gradient is among the smallest: a gradient of None is not stepped on."""
        held = [p for p in model.parameters() if p.grad is not None]
        largest = max((float(p.grad.abs().max()) for p in held if p.grad is not None), default=0.0)
        self._largest.append(largest)
        ceiling = float(torch.tensor(self._largest).quantile(self.quantile))
        if largest > ceiling or step == 1:
            for p in held:
                p.grad = None
