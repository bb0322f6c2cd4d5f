"""Multiplies the learning rates of an optimizer's groups for one step, and puts them back exactly."""

from typing import Any

import torch
from torch.optim import Optimizer


class Groups:
    """The rates of a step in progress, and what they were before.

    The scheduler never sees the factor, so the base schedule goes on as if nothing had happened.
    """

    def __init__(self) -> None:
        self._held: list[tuple[dict[str, Any], Any]] = []

    def scale(self, optimizer: Optimizer, factor: float) -> None:
        """Multiply the rates; one that is a tensor is changed in place, since compiled optimizers hold on to it.

        Args:
            optimizer: Whose groups.
            factor: What the rates are multiplied by; at 1 nothing is touched.
        """
        if factor == 1.0:
            return
        for group in optimizer.param_groups:
            rate = group.get("lr")
            if isinstance(rate, torch.Tensor):
                self._held.append((group, rate.clone()))
                rate.mul_(factor)
            elif rate is not None:
                self._held.append((group, rate))
                group["lr"] = rate * factor

    def restore(self) -> None:
        """Put the rates back exactly."""
        for group, rate in self._held:
            if isinstance(rate, torch.Tensor):
                group["lr"].copy_(rate)
            else:
                group["lr"] = rate
        self._held.clear()
