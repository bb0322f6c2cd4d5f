"""Faults of the start: weights too large, too small or all alike; activations dead or saturated from the beginning."""

from random import Random

import torch
from torch import nn

from dynaxx.core.task import Task
from dynaxx.rescue._parts import before_head, head
from dynaxx.rescue.alteration import Fault, log_uniform


def _scaled(model: nn.Module, factor: float) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() >= 2:
                p.mul_(factor)
    return model


class InitialisationLarge(Fault):
    """All matrices begin several times too large."""

    name = "initialisation_large"
    codes = ("D18", "D2", "D4", "D6", "D12", "D9", "D10", "D14", "D11", "D37")
    causes = ("initialisation_too_large",)

    def __init__(self, random: Random) -> None:
        self.factor = log_uniform(random, 4, 20)

    def model(self, task: Task, model: nn.Module) -> nn.Module:
        """Scale."""
        return _scaled(model, self.factor)


class InitialisationSmall(Fault):
    """All matrices begin orders of magnitude too small."""

    name = "initialisation_small"
    codes = ("D18", "D1", "D28", "D9", "D10", "D12")
    causes = ("initialisation_too_small", "vanishing_gradients")

    def __init__(self, random: Random) -> None:
        self.factor = log_uniform(random, 1e-4, 3e-2)

    def model(self, task: Task, model: nn.Module) -> nn.Module:
        """Scale."""
        return _scaled(model, self.factor)


class InitialisationSymmetric(Fault):
    """Every matrix begins as one number, which may be zero: units cannot become different."""

    name = "initialisation_symmetric"
    codes = ("D18", "D20", "D1", "D28", "D9", "D10", "D12")
    causes = ("initialisation_symmetric", "initialisation_too_small")

    def __init__(self, random: Random) -> None:
        self.value = random.choice((0.0, log_uniform(random, 1e-3, 3e-2)))

    def model(self, task: Task, model: nn.Module) -> nn.Module:
        """Write the number."""
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() >= 2:
                    p.fill_(self.value)
        return model


class SaturatedStack(Fault):
    """A deep stack of sigmoids stands before the head: its gradients vanish."""

    name = "saturated_stack"
    codes = ("D1", "D4", "D9", "D10", "D12", "D18", "D20", "D14", "D28")
    causes = ("vanishing_gradients", "saturated_activations")

    def __init__(self, random: Random) -> None:
        self.depth, self.scale = random.randint(5, 12), random.uniform(1, 4)

    def model(self, task: Task, model: nn.Module) -> nn.Module:
        """Insert it; larger weights drive it into saturation."""
        width = head(model)[1].in_features
        stack: list[nn.Module] = []
        for _ in range(self.depth):
            layer = nn.Linear(width, width)
            with torch.no_grad():
                layer.weight.mul_(self.scale)
            stack += [layer, nn.Sigmoid()]
        before_head(model, *stack)
        return model


class DeadReLU(Fault):
    """Nearly all units of a ReLU layer before the head are never active: their bias is far below zero."""

    name = "dead_relu"
    codes = ("D3", "D20", "D1", "D9", "D10", "D12", "D28")
    causes = ("dead_units",)

    def __init__(self, random: Random) -> None:
        self.bias, self.share = -log_uniform(random, 10, 100), random.uniform(0.9, 1.0)

    def model(self, task: Task, model: nn.Module) -> nn.Module:
        """Insert the layer."""
        width = head(model)[1].in_features
        layer = nn.Linear(width, width)
        with torch.no_grad():
            layer.bias[: round(self.share * width)] = self.bias
        before_head(model, layer, nn.ReLU())
        return model
