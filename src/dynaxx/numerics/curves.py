"""Curves between two points of parameter space, straight or bent, and their training towards low loss."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dynaxx.core.objective import Objective
from dynaxx.core.task import derive_seed
from dynaxx.errors import NotApplicable
from dynaxx.numerics.batch_statistics import normalisations

Kind = Literal["bezier", "polygon"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """θ(t) = Σᵢ cᵢ(t) pᵢ for t in [0, 1], with ends p₀ and p_n.

    A Bézier curve has Bernstein's polynomials as cᵢ; with one inner point it is (1−t)² p₀ + 2t(1−t) p₁ + t² p₂. A
    polygonal chain has hats: it goes straight from point to point, each in an equal share of t.

    Args:
        kind: "bezier" or "polygon"; with two points both are the segment.
        points: Two or more, each a tensor by name; what is not floating-point is taken from the first.
    """

    kind: Kind
    points: tuple[Mapping[str, Tensor], ...]

    def at(self, t: float) -> dict[str, Tensor]:
        """The point at t.

        Args:
            t: In [0, 1].

        Returns:
            New tensors by name.
        """
        shares = coefficients(self.kind, len(self.points), t)
        return {
            name: sum((c * p[name] for c, p in zip(shares, self.points, strict=True) if c), torch.zeros_like(first))
            if first.is_floating_point()
            else first.clone()
            for name, first in self.points[0].items()
        }


def coefficients(kind: Kind, points: int, t: float) -> list[float]:
    """How much each point counts at t; they sum to 1.

    Args:
        kind: "bezier" or "polygon".
        points: How many, at least 2.
        t: In [0, 1].

    Returns:
        One number a point.

    Example:
        >>> coefficients("bezier", 3, 0.5), coefficients("polygon", 3, 0.75)
        ([0.25, 0.5, 0.25], [0.0, 0.5, 0.5])
    """
    n = points - 1
    if kind == "bezier":
        return [math.comb(n, i) * t**i * (1 - t) ** (n - i) for i in range(points)]
    return [max(0.0, 1 - abs(n * t - i)) for i in range(points)]


def segment(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> Curve:
    """The straight line from one point to another.

    Args:
        one: Where t = 0.
        two: Where t = 1.

    Returns:
        The curve.
    """
    return Curve(kind="polygon", points=(one, two))


def train_curve(
    objective: Objective,
    one: Mapping[str, Tensor],
    two: Mapping[str, Tensor],
    *,
    kind: Kind,
    bends: int = 1,
    steps: int,
    learning_rate: float,
    seed: int = 0,
) -> tuple[Curve, list[float]]:
    """Minimise E_t L(θ(t)), t uniform on [0, 1], over the inner points; the ends stay (Garipov et al. 2018).

    A step takes one t and one batch, and Adam's update of the inner points by cᵢ(t)·∇L(θ(t)). Batch normalisation works
    with the batch's statistics, as the running ones of another point do not fit. They begin on the straight line.

    Args:
        objective: The loss; its model's weights are not written.
        one: Parameters and buffers at t = 0, by the names that the model has.
        two: At t = 1.
        kind: "bezier" or "polygon".
        bends: Inner points.
        steps: Updates.
        learning_rate: Adam's, about how far an entry moves in a step; it falls to zero along half a cosine.
        seed: Of t and of the order of the batches.

    Returns:
        The curve, and the losses seen.

    Raises:
        NotApplicable: The loss at a point of the curve is not finite.
    """
    line = segment(one, two)
    inner = [line.at(i / (bends + 1)) for i in range(1, bends + 1)]
    names = [name for name in objective.leaves() if one[name].is_floating_point()]
    free = [point[name].requires_grad_() for point in inner for name in names]
    optimizer = torch.optim.Adam(free, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: (1 + math.cos(math.pi * k / steps)) / 2)
    generator = torch.Generator().manual_seed(derive_seed(seed, "curve", kind))
    seen: list[float] = []
    order: list[int] = []
    for _ in range(steps):
        order = order or torch.randperm(len(objective.batches), generator=generator).tolist()
        t = float(torch.rand((), generator=generator))
        shares = coefficients(kind, bends + 2, t)
        here = Curve(kind=kind, points=(one, *({k: v.detach() for k, v in p.items()} for p in inner), two)).at(t)
        loss, gradient = _slope(objective, here, names, order.pop())
        if not math.isfinite(loss):
            raise NotApplicable(
                f"the loss at t = {t:.3f} of the {kind} is {loss} after {len(seen)} steps with learning_rate="
                f"{learning_rate:g}. Take a smaller rate where it was finite at first."
            )
        seen.append(loss)
        for k in range(bends):
            for parameter, part in zip(free[k * len(names) :], gradient, strict=False):
                parameter.grad = shares[k + 1] * part
        optimizer.step()
        schedule.step()
    points = (one, *({k: v.detach() for k, v in p.items()} for p in inner), two)
    return Curve(kind=kind, points=points), seen


def _slope(
    objective: Objective, here: dict[str, Tensor], names: Sequence[str], batch: int
) -> tuple[float, Sequence[Tensor]]:
    """Mean loss of one batch at a point, and its gradient by the parameters."""
    leaves = [here[name].requires_grad_() for name in names]
    with torch.enable_grad(), objective.prepared(), objective.substituted(here):
        for norm in normalisations(objective.model):
            norm.train()
        loss = objective.loss(batch) / (objective.shares[batch] or 1.0)
        gradient = torch.autograd.grad(loss, leaves, materialize_grads=True)
    return float(loss.detach()), gradient
