"""Faults of wiring: what should learn is frozen, forgotten or cut off, and losses that do not mean what was meant."""

import copy
from random import Random

import torch
from torch import nn
from torch.optim import Optimizer

from dynaxx.core.task import Task
from dynaxx.errors import NotApplicable
from dynaxx.rescue._parts import blocks, body, head, replace, without
from dynaxx.rescue.alteration import Fault, log_uniform


class FrozenBlock(Fault):
    """Some blocks before the head do not require gradients."""

    name = "frozen_block"
    codes = ("D20", "D12", "D9", "D10", "D14")
    causes = ("frozen_parameters",)

    def __init__(self, random: Random) -> None:
        self.place, self.share = random.random(), random.uniform(0.3, 1.0)

    def model(self, task: Task, model: nn.Module) -> nn.Module:
        """Freeze a stretch of the blocks before the head, at least one."""
        before = blocks(model)[:-1]
        count = max(1, round(self.share * len(before)))
        first = int(self.place * (len(before) - count + 1))
        for _, module in before[first : first + count]:
            module.requires_grad_(False)
        return model


class MissingFromOptimizer(Fault):
    """Some blocks before the head are in no group of the optimizer."""

    name = "missing_from_optimizer"
    codes = ("D20", "D12", "D9", "D10", "D14")
    causes = ("parameters_not_in_optimizer",)

    def __init__(self, random: Random) -> None:
        self.place, self.share = random.random(), random.uniform(0.3, 1.0)

    def optimizer(self, task: Task, model: nn.Module, optimizer: Optimizer) -> Optimizer:
        """Take them out."""
        before = blocks(model)[:-1]
        count = max(1, round(self.share * len(before)))
        first = int(self.place * (len(before) - count + 1))
        without(optimizer, {id(p) for _, m in before[first : first + count] for p in m.parameters()})
        return optimizer


class StaleHead(Fault):
    """The head was replaced after the optimizer had been made, which still holds the old one."""

    name = "stale_head"
    codes = ("D20", "D12", "D9", "D10", "D14")
    causes = ("stale_parameters", "parameters_not_in_optimizer")

    def __init__(self, random: Random) -> None:
        self.scale = random.uniform(0.5, 1.5)

    def optimizer(self, task: Task, model: nn.Module, optimizer: Optimizer) -> Optimizer:
        """Replace the head now."""
        path, old = head(model)
        new = copy.deepcopy(old)
        with torch.no_grad():
            new.weight.copy_(self.scale * old.weight[torch.randperm(len(old.weight))])
        replace(model, path, new)
        return optimizer


class MissingZeroGrad(Fault):
    """Gradients are never cleared: each update follows the sum of all gradients so far."""

    name = "missing_zero_grad"
    codes = ("D34", "D2", "D7", "D8", "D6", "D37", "D20", "D12", "D10", "D9")
    causes = ("gradients_not_cleared",)

    def __init__(self, random: Random) -> None:
        self.first_step = random.randint(1, 20)
        self._sum: dict[int, torch.Tensor] = {}

    def before_update(self, step: int, steps: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Add up."""
        if step < self.first_step:
            return
        for p in model.parameters():
            if p.grad is not None:
                kept = self._sum.setdefault(id(p), torch.zeros_like(p))
                p.grad.copy_(kept.add_(p.grad))

    def span(self, steps: int) -> tuple[int, int]:
        """From the first step that it is missing."""
        return self.first_step, steps


class _Detach(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        out = self.inner(*inputs)
        if isinstance(out, tuple):
            return tuple(part.detach() if isinstance(part, torch.Tensor) else part for part in out)
        return out.detach()


class DetachedBranch(Fault):
    """The output of a block is detached, so that nothing reaches it and what lies before."""

    name = "detached_branch"
    codes = ("D20", "D1", "D12", "D9", "D10")
    causes = ("loss_disconnected",)

    def __init__(self, random: Random) -> None:
        self.place = random.uniform(0.3, 1.0)

    def model(self, task: Task, model: nn.Module) -> nn.Module:
        """Wrap the block."""
        path, module = body(model, min(self.place, 0.999))
        replace(model, path, _Detach(module))
        return model


class _Probabilities(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.inner(inputs).softmax(-1)


class DoubleSoftmax(Fault):
    """The model ends in a softmax although the loss applies one."""

    name = "double_softmax"
    codes = ("D35", "D18", "D12", "D10", "D9", "D20", "D28")
    causes = ("double_softmax",)

    def __init__(self, random: Random) -> None:
        del random

    def check(self, task: Task) -> None:
        """It needs a loss on logits of classes."""
        needs_classes(task, self.name)

    def model(self, task: Task, model: nn.Module) -> nn.Module:
        """Put the softmax behind."""
        return _Probabilities(model)

    def bare(self, model: nn.Module) -> nn.Module:
        """The logits."""
        return model.inner if isinstance(model, _Probabilities) else model


class WrongSign(Fault):
    """The goal is maximised in place of the loss being minimised: the sign is wrong."""

    name = "wrong_sign"
    codes = ("D36", "D7", "D2", "D5", "D12", "D9", "D10")
    causes = ("wrong_loss_sign",)

    def __init__(self, random: Random) -> None:
        self.scale = random.uniform(0.5, 1.0)

    def loss(self, task: Task, model: nn.Module, batch: object) -> torch.Tensor:
        """The loss with the wrong sign."""
        return -self.scale * task.loss(model, batch)


class WrongReduction(Fault):
    """The loss is summed over the batch in place of averaged: gradients are larger by its size."""

    name = "wrong_reduction"
    codes = ("D2", "D7", "D8", "D5", "D18", "D6", "D31", "D37")
    causes = ("learning_rate_too_high", "initialisation_too_large")
    undone_by = ("learning_rate",)

    def __init__(self, random: Random) -> None:
        self.factor = log_uniform(random, 16, 256)

    def loss(self, task: Task, model: nn.Module, batch: object) -> torch.Tensor:
        """The sum."""
        return self.factor * task.loss(model, batch)


def needs_classes(task: Task, name: str) -> None:
    """Refuse a task whose targets are not classes.

    Args:
        task: The task.
        name: Who asks.
    """
    batch = next(iter(task.batches("train", 0)))
    if not (isinstance(batch, tuple | list) and len(batch) == 2 and not batch[1].is_floating_point()):
        raise NotApplicable(f"{name}: it needs batches (inputs, classes).")
