"""Directions that slices are cut along: random, gradient, eigenvectors, a trajectory's components, another model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dynaxx.core.objective import Objective
from dynaxx.core.parameters import some
from dynaxx.core.snapshot import Snapshot
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.hessian import Hessian
from dynaxx.numerics.lanczos import eigenpairs
from dynaxx.numerics.space import Space

Direction = Literal["random", "gradient", "eigenvectors", "trajectory", "model"]
Normalisation = Literal["filter", "layer", "raw"]

MARGIN = 0.25
"""A slice to another model, or over a trajectory, reaches a quarter further on each side: enough to see what rises
behind."""
EIGEN_PRODUCTS = 40
"""Most products for each eigenvector: the top ones of a trained network take 5 to 15."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """One slice: its directions, how far it reaches, and what is drawn over it.

    Args:
        rows: The directions, shape (dimensions, n), in the units of the parameters.
        labels: Their names.
        reach: Lowest and highest coordinate of each; None: to be chosen from the curvature.
        buffers: Buffers at coordinate 1 of the first direction; None: they stay.
        path: A trajectory's coordinates on the slice, shape (points, dimensions).
        steps: Its steps.
        note: What a reader must know of the directions.
    """

    rows: Tensor
    labels: tuple[str, ...]
    reach: tuple[tuple[float, float] | None, ...]
    buffers: Mapping[str, Tensor] | None = None
    path: np.ndarray | None = None
    steps: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How slices are to be cut.

    Args:
        direction: Along what.
        normalisation: How directions are scaled.
        dimensions: 1 or 2.
        count: How many slices.
        biases: Whether biases and the parameters of normalisation layers take part, scaled as a layer.
        seed: Of random directions.
        other: Another model's parameters and buffers.
        trajectory: Checkpoints.
    """

    direction: Direction
    normalisation: Normalisation
    dimensions: int
    count: int
    biases: bool
    seed: int
    other: Mapping[str, Tensor] | None = None
    trajectory: Sequence[Snapshot] = field(default=())

    def axes(self, objective: Objective, gradient: Tensor | None, hessian: Hessian | None) -> list[Axes]:
        """The slices at a point.

        Args:
            objective: The point.
            gradient: ∇L there, for `direction="gradient"`.
            hessian: For `direction="eigenvectors"`.

        Returns:
            `count` slices.

        Raises:
            BadInput: Another model or a snapshot has other tensors.
            NotApplicable: A direction is zero.
        """
        space = Space(objective.parameters, objective.names)
        origin = space.flatten(objective.parameters)
        match self.direction:
            case "model":
                assert self.other is not None
                return self._between(self.other, objective, space, origin)
            case "trajectory":
                return self._along(space, origin)
            case "eigenvectors":
                assert hessian is not None
                rows, names = self._eigenvectors(hessian)
            case "gradient":
                assert gradient is not None
                names = ["gradient" if k == 0 else "random" for k in range(self.dimensions)] * self.count
                rows = space.random(self.dimensions * self.count, seed=self.seed)
                rows[:: self.dimensions] = gradient
            case "random":
                names = [f"random {k + 1}" for k in range(self.dimensions)] * self.count
                rows = space.random(self.dimensions * self.count, seed=self.seed)
        rows = normalised(rows, space, origin, self.normalisation, biases=self.biases)
        reach = None if self.normalisation == "raw" else (-1.0, 1.0)
        d = self.dimensions
        return [
            Axes(rows=rows[i : i + d], labels=tuple(names[i : i + d]), reach=(reach,) * d)
            for i in range(0, len(rows), d)
        ]

    def _eigenvectors(self, hessian: Hessian) -> tuple[Tensor, list[str]]:
        wanted = self.dimensions * self.count
        if wanted > hessian.space.numel:
            raise BadInput(
                f"slices(count={self.count}, dimensions={self.dimensions}) along eigenvectors needs as many parameters."
                f" Got {hessian.space.numel}."
            )
        found = eigenpairs(hessian, wanted, max_products=EIGEN_PRODUCTS * wanted, seed=self.seed)
        return found.vectors, [f"eigenvector of λ = {float(value):.4g}" for value in found.values]

    def _between(self, other: Mapping[str, Tensor], objective: Objective, space: Space, origin: Tensor) -> list[Axes]:
        there = _flat(other, space, "other")
        row = (there - origin)[None]
        if not float(space.norms(row)[0]) > 0:
            raise NotApplicable("slices(direction='model'): the other model has the same weights, or some not finite.")
        first = Axes(
            rows=row,
            labels=("towards the other model",),
            reach=((-MARGIN, 1 + MARGIN),),
            buffers={name: other[name] for name, _ in objective.model.named_buffers() if name in other},
        )
        if self.dimensions == 1:
            return [first]
        across = normalised(space.random(self.count, seed=self.seed), space, origin, "filter", biases=self.biases)
        across -= (across @ row.T) / (row @ row.T) * row
        return [
            replace(
                first,
                rows=torch.cat([row, side[None]]),
                labels=(*first.labels, "random, across"),
                reach=(*first.reach, (-1.0, 1.0)),
            )
            for side in across
        ]

    def _along(self, space: Space, origin: Tensor) -> list[Axes]:
        """Principal components of the checkpoints about this point, which the slice goes through."""
        steps = tuple(snapshot.step for snapshot in self.trajectory)
        apart = torch.stack([_flat(each.load(), space, f"trajectory, step {each.step}") for each in self.trajectory])
        apart -= origin
        wanted = self.dimensions * self.count
        gram = space.gram(apart, apart).double()
        values, mixing = torch.linalg.eigh(gram)
        values, mixing = values.flip(0), mixing.flip(1)
        if wanted > len(values) or not float(values[wanted - 1]) > 1e-9 * float(values[0]):
            raise NotApplicable(
                f"slices(direction='trajectory'): {len(steps)} checkpoints span fewer than {wanted} directions. "
                "Keep more checkpoints, or ask for fewer dimensions."
            )
        rows = mixing[:, :wanted].T.to(apart) @ apart
        rows /= space.norms(rows)[:, None]
        places = space.gram(apart, rows).double().cpu().numpy()
        shares = (values / values.sum()).tolist()
        d = self.dimensions
        found: list[Axes] = []
        for i in range(0, wanted, d):
            captured = sum(shares[i : i + d])
            labels = tuple(f"component {k + 1}, {shares[k]:.1%} of the variance" for k in range(i, i + d))
            reach = tuple(_around(places[:, k]) for k in range(i, i + d))
            note = (
                f"The slice goes through the weights probed and captures {captured:.1%} of the trajectory's squared "
                "distance from them; the path is its projection, whose losses are not those of the checkpoints."
            )
            found.append(
                Axes(
                    rows=rows[i : i + d], labels=labels, reach=reach, path=places[:, i : i + d], steps=steps, note=note
                )
            )
        return found


def normalised(rows: Tensor, space: Space, origin: Tensor, how: Normalisation, *, biases: bool) -> Tensor:
    """Directions scaled to the weights.

    "filter": each filter, row or embedding has the norm of the weights' own (Li et al. 2018). "layer": each tensor has.
    In both, biases and parameters of normalisation layers (fewer than two dimensions) are zero unless wanted, as a
    rescaling of the weights before them would not change the function. "raw": unit length.

    Args:
        rows: Shape (k, n).
        space: Of the parameters.
        origin: The weights, shape (n,).
        how: As above.
        biases: Whether tensors of fewer than two dimensions take part, scaled as one.

    Returns:
        New rows.

    Raises:
        NotApplicable: Nothing is left of one.
    """
    if how == "raw":
        found = rows.clone()
    else:
        found = torch.zeros_like(rows)
        for where, shape in zip(space.slices().values(), space.shapes, strict=True):
            if len(shape) < 2 and not biases:
                continue
            filters = shape[0] if how == "filter" and len(shape) >= 2 else 1
            part, own = rows[:, where].reshape(len(rows), filters, -1), origin[where].reshape(1, filters, -1)
            norms = torch.linalg.vector_norm(part, dim=2, keepdim=True)
            sizes = torch.linalg.vector_norm(own, dim=2, keepdim=True)
            found[:, where] = (part * torch.where(norms > 0, sizes / norms, 0.0)).flatten(1)
    norms = space.norms(found)
    if not bool((norms > 0).all()) or not bool(torch.isfinite(norms).all()):
        raise NotApplicable(
            f"slices: a direction is zero or not finite under normalisation={how!r}. "
            "Where all weights are zero or the gradient vanishes, use random directions with normalisation='raw'."
        )
    return found / norms[:, None] if how == "raw" else found


def _around(places: np.ndarray) -> tuple[float, float]:
    low, high = min(0.0, float(places.min())), max(0.0, float(places.max()))
    margin = MARGIN * (high - low)
    return low - margin, high + margin


def _flat(tensors: Mapping[str, Tensor], space: Space, what: str) -> Tensor:
    missing = [name for name in space.names if name not in tensors]
    if missing:
        raise BadInput(f"slices({what}) lacks {some(missing)}. Give the parameters of the same architecture by name.")
    for name, parameter in zip(space.names, space.parameters, strict=True):
        if tensors[name].shape != parameter.shape:
            raise BadInput(
                f"slices({what}): {name!r} is of shape {tuple(tensors[name].shape)}, in the model "
                f"{tuple(parameter.shape)}. Give a model of the same architecture."
            )
    return space.flatten([tensors[name].to(space.device) for name in space.names])
