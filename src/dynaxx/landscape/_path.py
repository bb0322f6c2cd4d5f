"""Loss and error along a curve in parameter space, and the height of what stands between its ends."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynaxx.core.chart import Estimate
from dynaxx.core.objective import Objective
from dynaxx.core.progress import report
from dynaxx.errors import BadInput
from dynaxx.numerics.batch_statistics import Statistics, renewed, rescaled, writable
from dynaxx.numerics.curves import Curve

ErrorFunction = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a measure does along a curve.

    Args:
        t: Positions, increasing from 0 to 1.
        batches: Shape (positions, batches): the mean over the examples of each batch.
        shares: Weight of each batch; they sum to 1.
    """

    t: np.ndarray
    batches: np.ndarray
    shares: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """Means over all examples, one for each position."""
        return self.batches @ self.shares

    def standard_error(self, rows: np.ndarray) -> float | None:
        """Of the mean of batches, by their spread; None for one batch.

        Args:
            rows: One number a batch.

        Returns:
            In its unit.
        """
        n = int((self.shares > 0).sum())
        if n < 2:
            return None
        apart = rows - rows @ self.shares
        return float(np.sqrt((self.shares**2 * apart**2).sum() * n / (n - 1)))

    @property
    def barrier(self) -> Estimate:
        """max_t [L(t) − (1−t)·L(0) − t·L(1)], with the standard error at the t where it is reached.

        The same batches are seen at every t, so most of their spread cancels. Infinite where a value is not finite.
        """
        ends = np.outer(1 - self.t, self.batches[0]) + np.outer(self.t, self.batches[-1])
        above = self.batches - ends
        heights = above @ self.shares
        if not np.isfinite(heights).all():
            return Estimate(value=math.inf)
        top = int(heights.argmax())
        return Estimate(value=float(max(heights[top], 0.0)), error=self.standard_error(above[top]))

    @property
    def top(self) -> float:
        """The largest value."""
        return float(self.values.max()) if np.isfinite(self.values).all() else math.inf

    @property
    def climb(self) -> float:
        """Largest rise on the way: 0 where the measure falls monotonically from the first end to the last."""
        values = self.values
        if not np.isfinite(values).all():
            return math.inf
        return float((values - np.minimum.accumulate(values)).max())


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """REPAIR of the units between two ends.

    Args:
        layers: Path → module whose units are rescaled.
        ends: Their statistics at either end.
    """

    layers: Mapping[str, nn.Module]
    ends: tuple[Statistics, Statistics]

    def goal(self, t: float) -> dict[str, tuple[Tensor, Tensor]]:
        """Means and deviations at t, those of the ends interpolated."""
        one, two = self.ends
        return {
            path: ((1 - t) * one[path][0] + t * two[path][0], (1 - t) * one[path][1] + t * two[path][1]) for path in one
        }


def along(
    objective: Objective,
    curve: Curve,
    positions: Sequence[float],
    *,
    error: ErrorFunction | None = None,
    statistics: bool = True,
    repair: Repair | None = None,
) -> tuple[Profile, Profile | None]:
    """Loss, and error where one is given, at points of a curve.

    Args:
        objective: The loss and its batches.
        curve: Where.
        positions: t of each point, from 0 to 1.
        error: `error(model, batch)` → a mean over the examples of the batch.
        statistics: Renew the running statistics of batch normalisation at each point, the ends included.
        repair: Rescale units between the ends.

    Returns:
        The loss's profile and the error's.
    """
    losses, errors = list[list[float]](), list[list[float]]()
    shares = np.array(objective.shares)
    for t in positions:
        here = curve.at(t)
        if statistics:
            here = renewed(objective, here)
        between = repair if 0 < t < 1 else None  # at the ends there is nothing to correct
        corrected = rescaled(objective, here, between.layers, between.goal(t)) if between else nullcontext()
        with corrected, torch.no_grad(), objective.prepared(), objective.substituted(here):
            losses.append([_mean(objective, i) for i in range(len(shares))])
            if error is not None:
                errors.append([_error(objective, error, i) for i in range(len(shares))])
    t = np.array(positions, dtype=np.float64)
    found = Profile(t=t, batches=np.array(losses), shares=shares)
    return found, Profile(t=t, batches=np.array(errors), shares=shares) if errors else None


def value_at(objective: Objective, tensors: Mapping[str, Tensor]) -> float:
    """L at other parameters and buffers.

    Args:
        objective: The loss and its batches.
        tensors: By the names that the model has.

    Returns:
        The mean over all examples.
    """
    with torch.no_grad(), objective.prepared(), objective.substituted(writable(objective, tensors)):
        return math.fsum(float(objective.loss(i)) for i in range(len(objective.batches)))


def _mean(objective: Objective, i: int) -> float:
    """The mean loss of a batch; one without weight counts nothing."""
    share = objective.shares[i]
    return float(objective.loss(i)) / share if share else 0.0


def _error(objective: Objective, error: ErrorFunction, i: int) -> float:
    objective.seed(i)
    report(passes=1)
    found = error(objective.model, objective.batches[i])
    if not isinstance(found, Tensor) or found.dim() != 0:
        kind = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise BadInput(f"error(model, batch) must return a scalar tensor, the mean over its examples. Got {kind}.")
    return float(found)
