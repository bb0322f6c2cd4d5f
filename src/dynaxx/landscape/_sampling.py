"""The loss at θ + Σ αₖ dₖ, point after point, while the model's weights stay where they are; and how sure it is."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from dynaxx.core.batches import examples, split
from dynaxx.core.displaced import Displaced
from dynaxx.core.objective import Objective
from dynaxx.core.progress import report
from dynaxx.errors import NotApplicable
from dynaxx.numerics.space import Space

PARTS = 20
"""Into about so many parts examples are cut for a standard error, which is then known to 1/√(2 · 19) = 16 %."""

Loss = Callable[[Sequence[float]], float]
"""Coordinates along the directions → the loss there."""


class Sampler:
    """Losses on the slice that directions span at an objective's point.

    Each loss is that of all examples of the objective with the same random numbers; buffers that a forward changes are
    put back before the next. The sums θ + Σ αₖ dₖ are taken anew for every point, so that nothing accumulates; where
    only the last coordinate differs from the point before, that is one addition.

    Args:
        objective: The loss and the point.
        rows: The directions, shape (k, n).
        buffers: Buffers at coordinate 1 of the first direction, of another model; they move with it in between. None:
            they stay.

    Raises:
        BadInput: A parameter is in half precision.
        NotApplicable: Parameters are sharded.
    """

    def __init__(self, objective: Objective, rows: Tensor, buffers: Mapping[str, Tensor] | None = None) -> None:
        self._objective, self._rows = objective, rows
        self._space = Space(objective.parameters, objective.names)
        self._origin = self._space.flatten(objective.parameters)
        self._point = _Quick(objective, self._space, self._origin)
        self._buffers = buffers or {}

    @contextmanager
    def open(self) -> Generator[Loss]:
        """Losses may be taken within; modes and random streams are put back after."""
        with self._placed() as place:
            point = self._point
            batches, shares, model, loss_fn = point.batches, point.shares, point.model, point.loss_fn

            def loss(at: Sequence[float]) -> float:
                place(at)
                total = 0.0
                # As Objective.loss does, with the shares in Python: a tensor operation less for each batch.
                for i, (batch, share) in enumerate(zip(batches, shares, strict=True)):
                    point.seed(i)
                    total += share * float(loss_fn(model, batch))
                report(passes=len(batches))
                return total

            yield loss

    def spread(self, points: Sequence[Sequence[float]]) -> "Spread":
        """Losses of parts of the examples at a few points, from which standard errors come.

        Args:
            points: Coordinates; one pass over all examples each.

        Returns:
            The losses.

        Raises:
            NotApplicable: There is one part only.
        """
        parts = self._parts()
        if len(parts) < 2:
            raise NotApplicable(
                "one batch, which batch statistics or random numbers forbid to cut: no standard error. "
                "Give several batches."
            )
        rows: list[list[float]] = []
        with self._placed() as place:
            for at in points:
                place(at)
                rows.append([self._part(i, part, whole) for i, part, _, whole in parts])
        shares = np.array([share for _, _, share, _ in parts])
        return Spread(np.array(rows), shares / shares.sum())

    @contextmanager
    def _placed(self) -> Generator[Callable[[Sequence[float]], None]]:
        point, model = self._point, self._objective.model
        here = {name: b.detach().clone() for name, b in model.named_buffers()}
        with torch.no_grad(), point.prepared(), point.substituted({n: b.clone() for n, b in here.items()}):
            changing = any(module.training for module in model.modules())
            moving = dict(model.named_buffers())

            *heads, last = self._rows  # a tensor makes its rows anew whenever it is iterated
            line, known = self._origin, [0.0] * len(heads)

            def place(at: Sequence[float]) -> None:
                nonlocal line, known
                if known != (known := list(at[:-1])):
                    line = self._origin
                    for row, coordinate in zip(heads, known, strict=True):
                        line = torch.add(line, row, alpha=coordinate)
                torch.add(line, last, alpha=at[-1], out=point.flat)
                if point.mixed:
                    point.move(self._space.split(point.flat))
                if changing or self._buffers:
                    self._move(moving, here, min(1.0, max(0.0, at[0])))

            yield place

    def _move(self, moving: Mapping[str, Tensor], here: Mapping[str, Tensor], share: float) -> None:
        """Buffers at a share of the way to the other model's; counters and masks jump half way."""
        for name, buffer in moving.items():
            there = self._buffers.get(name, here[name]).to(buffer)
            if buffer.is_floating_point():
                buffer.copy_(torch.lerp(here[name], there, share))
            else:
                buffer.copy_(here[name] if share < 0.5 else there)

    def _parts(self) -> list[tuple[int, object, float, int]]:
        """Batch, part of it, its share of the objective, and into how many parts the batch was cut."""
        objective = self._objective
        modes = objective.mode == "training" or (
            objective.mode == "as is" and any(module.training for module in objective.model.modules())
        )
        each = 1 if modes else -(-PARTS // len(objective.batches))
        found: list[tuple[int, object, float, int]] = []
        for i, (batch, share) in enumerate(zip(objective.batches, objective.shares, strict=True)):
            cut = split(batch, max(1, -(-int(examples(batch)) // each))) if each > 1 else [batch]
            sizes = [examples(part) for part in cut] if len(cut) > 1 else [1.0]
            found += [(i, part, share * n / sum(sizes), len(cut)) for part, n in zip(cut, sizes, strict=True)]
        return found

    def _part(self, i: int, part: object, parts: int) -> float:
        self._point.seed(i)
        report(passes=1 / parts)
        return float(self._objective.loss_fn(self._objective.model, part))


class _Quick(Displaced):
    """The moved point, its tensors views of one vector: to copy tensor by tensor takes a forward of a small net."""

    def __init__(self, base: Objective, space: Space, origin: Tensor) -> None:
        super().__init__(base)
        self.flat = origin.clone()
        self.mixed = any(kind != space.dtype for kind in space.kinds)
        if not self.mixed:
            for parameter, view in zip(self.parameters, space.split(self.flat), strict=True):
                parameter.data = view
                parameter.requires_grad_(False)  # nothing is differentiated here, and autograd's dispatch costs time


class Spread:
    """Losses of parts of the examples at points.

    Args:
        values: Shape (points, parts).
        shares: Each part's share of the examples, summing to 1.
    """

    def __init__(self, values: np.ndarray, shares: np.ndarray) -> None:
        self._values, self._shares = values, shares
        self.means: list[float] = (values @ shares).tolist()
        """The loss at each point."""

    def error(self, i: int, less: int | None = None) -> float:
        """Standard error of the loss at a point, or of its difference to another's on the same examples.

        se² = K/(K − 1) Σ wⱼ² (vⱼ − v̄)², of the K parts with shares wⱼ taken as a sample.

        Args:
            i: Which point.
            less: The point that is subtracted.

        Returns:
            The error; not finite where a loss is not.
        """
        values = self._values[i] - (0.0 if less is None else self._values[less])
        count = len(values)
        with np.errstate(invalid="ignore"):
            apart = values - np.sum(self._shares * values)
            return float(np.sqrt(count / (count - 1) * np.sum((self._shares * apart) ** 2)))
