"""Healthy runs whose rate or optimizer looks alarming: warm-ups, restarts, staircases, the edge of stability."""

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dynaxx.core.task import Split, Task
from dynaxx.rescue._parts import shaped
from dynaxx.rescue.alteration import Healthy
from dynaxx.rescue.faults.data import needs_numbers
from dynaxx.rescue.faults.rates import scale_rates


class LongWarmup(Healthy):
    """The rate rises over a third of the run."""

    name = "long_warmup"

    def __init__(self, random: Random) -> None:
        self.share = random.uniform(0.2, 0.4)

    def scheduler(self, task: Task, optimizer: Optimizer, scheduler: LRScheduler | None) -> LRScheduler:
        """The task's schedule times the rise."""
        return shaped(optimizer, scheduler, lambda step: min(1.0, (step + 1) / (self.share * task.steps)))


class CosineRestarts(Healthy):
    """The rate is restarted a few times and falls along a cosine after each."""

    name = "cosine_restarts"

    def __init__(self, random: Random) -> None:
        self.cycles = random.randint(2, 5)

    def scheduler(self, task: Task, optimizer: Optimizer, scheduler: LRScheduler | None) -> LRScheduler:
        """The task's schedule times the cosines."""

        def factor(step: int) -> float:
            return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step * self.cycles / task.steps % 1)))

        return shaped(optimizer, scheduler, factor)


class Staircase(Healthy):
    """The rate falls tenfold at a half and at three quarters."""

    name = "staircase"

    def __init__(self, random: Random) -> None:
        self.first, self.second = random.uniform(0.4, 0.6), random.uniform(0.7, 0.85)

    def scheduler(self, task: Task, optimizer: Optimizer, scheduler: LRScheduler | None) -> LRScheduler:
        """The task's schedule times the stairs."""
        places = (self.first * task.steps, self.second * task.steps)
        return shaped(optimizer, scheduler, lambda step: 0.1 ** sum(step >= place for place in places))


class OneCycle(Healthy):
    """The rate rises to three times its value and falls to nothing."""

    name = "one_cycle"

    def __init__(self, random: Random) -> None:
        self.peak, self.rise = random.uniform(1.5, 3), random.uniform(0.2, 0.4)

    def scheduler(self, task: Task, optimizer: Optimizer, scheduler: LRScheduler | None) -> LRScheduler:
        """One rise and one fall."""

        def factor(step: int) -> float:
            at = step / task.steps
            if at < self.rise:
                return self.peak * (0.04 + 0.96 * at / self.rise)
            return self.peak * max(0.0, 1 - (at - self.rise) / (1 - self.rise))

        return shaped(optimizer, None, factor)


class LinearToZero(Healthy):
    """The rate falls in a line to zero, and the loss with it to a floor."""

    name = "linear_to_zero"

    def __init__(self, random: Random) -> None:
        self.hold = random.uniform(0.0, 0.5)

    def scheduler(self, task: Task, optimizer: Optimizer, scheduler: LRScheduler | None) -> LRScheduler:
        """Hold, then fall."""
        return shaped(optimizer, None, lambda step: min(1.0, max(0.0, 1 - step / task.steps) / (1 - self.hold)))


class GradientClipping(Healthy):
    """The loop clips what is above one and a half times the median gradient so far."""

    name = "gradient_clipping"

    def __init__(self, random: Random) -> None:
        self.above = random.uniform(1.3, 1.8)
        self._norms: list[float] = []

    def before_update(self, step: int, steps: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Clip, through torch's own function."""
        held = [p for p in model.parameters() if p.grad is not None]
        bound = self.above * float(torch.tensor(self._norms[-100:]).median()) if self._norms else torch.inf
        self._norms.append(float(nn.utils.clip_grad_norm_(held, bound)))


class ScheduleFree(Healthy):
    """A schedule-free optimizer at a constant rate: gradients are taken between the iterate and its average."""

    name = "schedule_free"

    def __init__(self, random: Random) -> None:
        self.rate, self.beta = random.uniform(0.2, 0.5), 0.9

    def check(self, task: Task) -> None:
        """Its rate is one for images."""
        needs_numbers(task, self.name)

    def optimizer(self, task: Task, model: nn.Module, optimizer: Optimizer) -> Optimizer:
        """In place of the task's."""
        return _ScheduleFree(model.parameters(), self.rate, self.beta)

    def scheduler(self, task: Task, optimizer: Optimizer, scheduler: LRScheduler | None) -> LRScheduler | None:
        """None."""
        return None


class _ScheduleFree(Optimizer):
    """Schedule-free gradient descent (Defazio et al. 2024): z ← z − η g(y), x ← mean of z, y = (1 − β) z + β x."""

    def __init__(self, parameters: Any, lr: float, beta: float) -> None:
        super().__init__(parameters, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "z": p.clone(), "x": p.clone()}
                state["step"] += 1
                state["z"].sub_(p.grad, alpha=group["lr"])
                state["x"].lerp_(state["z"], 1 / state["step"])
                p.copy_(torch.lerp(state["z"], state["x"], group["beta"]))


class EdgeOfStability(Healthy):
    """Full-batch gradient descent at a rate beyond its first sharpness: the loss falls, but not at every step."""

    name = "edge_of_stability"

    def __init__(self, random: Random) -> None:
        self.rate = random.uniform(0.2, 0.5)
        self._whole: list[Any] = []

    def check(self, task: Task) -> None:
        """Its rate is one for images."""
        needs_numbers(task, self.name)

    def optimizer(self, task: Task, model: nn.Module, optimizer: Optimizer) -> Optimizer:
        """Plain gradient descent."""
        return torch.optim.SGD(model.parameters(), lr=self.rate)

    def scheduler(self, task: Task, optimizer: Optimizer, scheduler: LRScheduler | None) -> LRScheduler | None:
        """None."""
        return None

    def batches(self, task: Task, split: Split, epoch: int, batches: Sequence[Any]) -> Sequence[Any]:
        """The first examples, all in every step."""
        if split == "validation":
            return batches
        few = batches[:8]
        self._whole = self._whole or [tuple(torch.cat([part[side] for part in few]) for side in (0, 1))]
        return self._whole


class Catapult(Healthy):
    """The weights start on a steep slope: the loss rises at first, and comes down on a flatter one."""

    name = "catapult"

    def __init__(self, random: Random) -> None:
        self.scale, self.rate = random.uniform(1.5, 2.0), random.uniform(0.1, 0.2)

    def check(self, task: Task) -> None:
        """Its rate is one for images."""
        needs_numbers(task, self.name)

    def model(self, task: Task, model: nn.Module) -> nn.Module:
        """Steeper at the start."""
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() >= 2:
                    p.mul_(self.scale)
        return model

    def optimizer(self, task: Task, model: nn.Module, optimizer: Optimizer) -> Optimizer:
        """Plain gradient descent."""
        return torch.optim.SGD(model.parameters(), lr=self.rate)

    def scheduler(self, task: Task, optimizer: Optimizer, scheduler: LRScheduler | None) -> LRScheduler | None:
        """None."""
        return None


class LargeBatch(Healthy):
    """Batches of 256, and a rate to match."""

    name = "large_batch"

    def __init__(self, random: Random) -> None:
        self.times = random.choice((2, 4))

    def settings(self, task: Task) -> None:
        """Larger batches."""
        task.batch_size *= self.times

    def optimizer(self, task: Task, model: nn.Module, optimizer: Optimizer) -> Optimizer:
        """The square-root rule."""
        return scale_rates(optimizer, self.times**0.5)


class NoisySmallBatch(Healthy):
    """Batches of four, and a rate to match."""

    name = "noisy_small_batch"

    def __init__(self, random: Random) -> None:
        self.size, self.factor = random.choice((4, 6, 8)), random.uniform(0.2, 0.35)

    def settings(self, task: Task) -> None:
        """Smaller batches."""
        task.batch_size = self.size

    def optimizer(self, task: Task, model: nn.Module, optimizer: Optimizer) -> Optimizer:
        """A lower rate."""
        return scale_rates(optimizer, self.factor)
