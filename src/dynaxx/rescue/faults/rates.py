"""Faults of the optimizer and its schedule: rates, momentum, ε, decay, warm-up, restarts."""

from abc import abstractmethod
from random import Random

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dynaxx.core.task import Task
from dynaxx.errors import NotApplicable
from dynaxx.rescue._parts import groups_of, shaped
from dynaxx.rescue.alteration import Fault, log_uniform


def scale_rates(optimizer: Optimizer, factor: float) -> Optimizer:
    """Multiply the learning rate of every group, before a schedule is made for it.

    Args:
        optimizer: The optimizer.
        factor: The factor.

    Returns:
        The optimizer.
    """
    for group in optimizer.param_groups:
        group["lr"] *= factor
    return optimizer


class RateTooHigh(Fault):
    """The learning rate is 3 to 300 times too high."""

    name = "rate_too_high"
    codes = ("D8", "D7", "D5", "D6", "D2", "D3", "D12", "D10", "D31", "D30", "D23", "D4", "D29", "D37")
    causes = ("learning_rate_too_high",)
    undone_by = ("learning_rate",)

    def __init__(self, random: Random) -> None:
        self.factor = log_uniform(random, 3, 300)

    def optimizer(self, task: Task, model: nn.Module, optimizer: Optimizer) -> Optimizer:
        """Raise it."""
        return scale_rates(optimizer, self.factor)


class RateTooLow(Fault):
    """The learning rate is 10 to 10 000 times too low."""

    name = "rate_too_low"
    codes = ("D9", "D12", "D10", "D37")
    causes = ("learning_rate_too_low",)
    undone_by = ("learning_rate",)

    def __init__(self, random: Random) -> None:
        self.factor = 1 / log_uniform(random, 10, 10_000)

    def optimizer(self, task: Task, model: nn.Module, optimizer: Optimizer) -> Optimizer:
        """Lower it."""
        return scale_rates(optimizer, self.factor)


class MomentumTooHigh(Fault):
    """The momentum is so high that the weights overshoot."""

    name = "momentum_too_high"
    codes = ("D38", "D8", "D7", "D5", "D6", "D10", "D12", "D9", "D30", "D37")
    causes = ("momentum_too_high", "learning_rate_too_high")
    undone_by = ("momentum",)

    def __init__(self, random: Random) -> None:
        self.momentum = 1 - log_uniform(random, 1e-3, 1e-2)

    def optimizer(self, task: Task, model: nn.Module, optimizer: Optimizer) -> Optimizer:
        """Set it."""
        for group in optimizer.param_groups:
            if "momentum" in group:
                group["momentum"] = self.momentum
            elif "betas" in group:
                group["betas"] = (self.momentum, group["betas"][1])
            else:
                raise NotApplicable(f"{self.name}: {type(optimizer).__name__} has no momentum.")
        return optimizer


class EpsilonTooLarge(Fault):
    """Adam's ε outweighs its second moments."""

    name = "epsilon_too_large"
    codes = ("D17", "D9", "D12", "D10", "D37")
    causes = ("epsilon_too_large", "learning_rate_too_low")
    undone_by = ("epsilon",)

    def __init__(self, random: Random) -> None:
        self.epsilon = log_uniform(random, 0.1, 100)

    def optimizer(self, task: Task, model: nn.Module, optimizer: Optimizer) -> Optimizer:
        """Set it."""
        for group in groups_of(optimizer, "eps"):
            group["eps"] = self.epsilon
        return optimizer


class CoupledDecay(Fault):
    """L2 regularisation goes through Adam's preconditioner."""

    name = "coupled_decay"
    codes = ("D32", "D12", "D10", "D9")
    causes = ("weight_decay_coupled", "weight_decay_too_high")

    def __init__(self, random: Random) -> None:
        self.decay = log_uniform(random, 0.02, 0.3)

    def optimizer(self, task: Task, model: nn.Module, optimizer: Optimizer) -> Optimizer:
        """Adam with weight decay in place of Adam or AdamW."""
        if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
            raise NotApplicable(f"{self.name}: {type(optimizer).__name__} divides by no second moments.")
        group = optimizer.param_groups[0]
        held = [p for g in optimizer.param_groups for p in g["params"]]
        return torch.optim.Adam(held, lr=group["lr"], betas=group["betas"], weight_decay=self.decay)


class _Shaped(Fault):
    """A schedule with a factor of its own on top of the task's."""

    @abstractmethod
    def factor(self, step: int, steps: int) -> float:
        """What the rate is multiplied by after so many steps."""

    def scheduler(self, task: Task, optimizer: Optimizer, scheduler: LRScheduler | None) -> LRScheduler | None:
        """The task's schedule times the factor."""
        return shaped(optimizer, scheduler, lambda step: self.factor(step, task.steps))


class NoWarmup(_Shaped):
    """A rate that needs a warm-up is taken in full from the first step."""

    name = "no_warmup"
    codes = ("D31", "D6", "D7", "D8", "D5", "D2", "D3", "D12", "D10", "D37")
    causes = ("warmup_missing", "learning_rate_too_high")
    undone_by = ("rate_band",)

    def __init__(self, random: Random) -> None:
        self.boost = log_uniform(random, 4, 30)
        self.length = random.uniform(0.03, 0.1)

    def factor(self, step: int, steps: int) -> float:
        """High at first, then the task's own."""
        return self.boost if step < self.length * steps else 1.0

    def span(self, steps: int) -> tuple[int, int]:
        """The steps that should have been a warm-up."""
        return 1, round(self.length * steps)


class DecaysTooEarly(_Shaped):
    """The schedule is at its end long before the run is."""

    name = "decays_too_early"
    codes = ("D13", "D9", "D10", "D12", "D37")
    causes = ("schedule_too_aggressive", "learning_rate_too_low")
    undone_by = ("rate_band",)

    def __init__(self, random: Random) -> None:
        self.at, self.final = random.uniform(0.02, 0.12), log_uniform(random, 1e-4, 1e-2)

    def factor(self, step: int, steps: int) -> float:
        """One, then next to nothing."""
        return 1.0 if step < self.at * steps else self.final

    def span(self, steps: int) -> tuple[int, int]:
        """From the drop on."""
        return max(1, round(self.at * steps)), steps


class RestartTooAggressive(_Shaped):
    """The rate is thrown up by a factor in the middle of the run, and stays."""

    name = "restart_too_aggressive"
    codes = ("D13", "D6", "D7", "D8", "D5", "D2", "D10", "D30", "D21", "D37")
    causes = ("schedule_too_aggressive", "learning_rate_too_high")
    undone_by = ("rate_band",)

    def __init__(self, random: Random) -> None:
        self.at, self.boost = random.uniform(0.4, 0.8), log_uniform(random, 10, 100)

    def factor(self, step: int, steps: int) -> float:
        """One, then the factor."""
        return 1.0 if step < self.at * steps else self.boost

    def span(self, steps: int) -> tuple[int, int]:
        """From the restart on."""
        return max(1, round(self.at * steps)), steps
