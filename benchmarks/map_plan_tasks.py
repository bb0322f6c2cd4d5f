"""Tasks whose default learning rate is ten times too high or too low, for `map_plan.py`."""

from dataclasses import replace

import torch
from torch import nn
from torch.optim import Optimizer

from dynaxx.tasks.digits import Digits
from dynaxx.tasks.stdlib_lm import StdlibLM


def _scaled(optimizer: Optimizer, factor: float) -> Optimizer:
    for group in optimizer.param_groups:
        group["lr"] *= factor
    return optimizer


class LMHigh(StdlibLM):
    """stdlib-lm at ten times its rate."""

    def __init__(self, size: str | None = None) -> None:
        super().__init__(size)
        self._chosen = replace(self._chosen, learning_rate=10 * self._chosen.learning_rate)


class LMLow(StdlibLM):
    """stdlib-lm at a tenth of its rate."""

    def __init__(self, size: str | None = None) -> None:
        super().__init__(size)
        self._chosen = replace(self._chosen, learning_rate=self._chosen.learning_rate / 10)


class DigitsHigh(Digits):
    """digits at ten times its rate."""

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD as the task's."""
        return _scaled(super().optimizer(model), 10.0)


class DigitsLow(Digits):
    """digits at a tenth of its rate."""

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD as the task's."""
        return _scaled(super().optimizer(model), 0.1)
