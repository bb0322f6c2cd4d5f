"""Statistics of the gradient norm over past steps, kept and asked on the device: nothing waits for a number."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dynaxx.core.events import StepView
from dynaxx.core.parameters import widest
from dynaxx.numerics.reductions import layer_norms

FLOOR = 1e-6
"""Standard deviations are taken as at least this share of the mean: norms that are equal up to rounding are equal."""


def total_norm(step: StepView) -> Tensor:
    """L2 norm of the whole gradient as it stands now, over all shards.

    Measured anew: the loop's own clipping or another action may have changed the gradient since the signals saw it.

    Args:
        step: The step.

    Returns:
        A scalar in the widest type of the device.
    """
    norms = layer_norms(step.gradients, step.layout, step.gradient_factor)
    return torch.linalg.vector_norm(norms.to(widest(norms.device)))


class Window:
    """The last norms, those that are not finite left out.

    Args:
        size: How many are kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._seen = 0
        self._values: Tensor | None = None

    def add(self, norm: Tensor) -> None:
        """Take in a norm, in the place of the oldest.

        Args:
            norm: A scalar.
        """
        at = self._seen % self._size
        self.values(norm)[at] = torch.where(torch.isfinite(norm), norm, torch.nan)
        self._seen += 1

    def values(self, like: Tensor) -> Tensor:
        """The norms in no order, NaN where there is none.

        Args:
            like: A scalar of their type and device.

        Returns:
            Shape (size,).
        """
        if self._values is None:
            self._values = torch.full((self._size,), torch.nan, dtype=like.dtype, device=like.device)
        elif self._values.device != like.device:  # loaded from a checkpoint
            self._values = self._values.to(like)
        return self._values

    def state_dict(self) -> dict[str, Any]:
        """The norms, and how many were seen."""
        return {"seen": self._seen, "values": self._values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `state_dict` returned.
        """
        values = state["values"]
        self._seen, self._values = state["seen"], None if values is None else values.clone()


def counted(values: Tensor) -> Tensor:
    """How many entries are not NaN.

    Args:
        values: Shape (size,).

    Returns:
        A scalar.
    """
    return (~torch.isnan(values)).sum()


def mean_and_deviation(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample standard deviation of the entries that are not NaN.

    Args:
        values: Shape (size,).

    Returns:
        Two scalars; NaN where there are too few entries.

    Example:
        >>> mean, deviation = mean_and_deviation(torch.tensor([1.0, torch.nan, 3.0]))
        >>> float(mean), round(float(deviation), 4)
        (2.0, 1.4142)
    """
    mean = torch.nanmean(values)
    variance = torch.nansum((values - mean).square()) / (counted(values) - 1)
    return mean, torch.maximum(variance.sqrt(), FLOOR * mean)
