"""Geometry of checkpoints from their inner products alone: principal components, random-walk null, channels."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Vectors = Sequence[Tensor]


def gram(load: Callable[[int], Vectors], count: int, *, hold: int = 1) -> Float[np.ndarray, "n n"]:
    """Inner products ⟨xᵢ, xⱼ⟩ of vectors that do not fit in memory together.

    Args:
        load: i → the i-th vector, in pieces.
        count: How many vectors, n.
        hold: How many are held beside the one that is being read; each is read about n/(2·hold) times.

    Returns:
        float64 of shape (n, n), sums taken in float64.
    """
    found = np.empty((count, count))
    for first in range(0, count, hold):
        block = {i: load(i) for i in range(first, min(count, first + hold))}
        for j in range(first, count):
            vector = block[j] if j in block else load(j)
            for i, held in block.items():
                found[i, j] = found[j, i] = _inner(held, vector)
    return found


def _inner(one: Vectors, two: Vectors) -> float:
    return math.fsum(
        float(torch.dot(a.reshape(-1).double(), b.reshape(-1).double())) for a, b in zip(one, two, strict=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Principal components of n vectors about their mean.

    Args:
        variances: Sums of squares along each component, largest first, shape (k,); none is zero.
        coordinates: Shape (n, k), in units of the weights.
        weights: Shape (n, k): component k is the unit vector Σᵢ weights[i, k] (xᵢ − mean).
    """

    variances: np.ndarray
    coordinates: np.ndarray
    weights: np.ndarray

    @property
    def explained(self) -> np.ndarray:
        """Share of the variance along each component."""
        return self.variances / self.variances.sum()

    @property
    def participation(self) -> float:
        """Effective dimension, (Σλ)² / Σλ²: k where the variance is spread evenly over k directions."""
        return float(self.variances.sum() ** 2 / np.square(self.variances).sum())


def principal(products: Float[np.ndarray, "n n"]) -> Principal:
    """Principal components from inner products.

    Args:
        products: ⟨xᵢ, xⱼ⟩ of differences from any reference: the components do not depend on it.

    Returns:
        The components above rounding, at least none.

    Example:
        >>> points = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
        >>> principal(points @ points.T).variances.round(12).tolist()
        [4.0, 1.0]
    """
    values, vectors = np.linalg.eigh(centred(products))
    kept = values > 1e-12 * max(float(np.trace(products)), 1e-300) * len(values)
    values, vectors = values[kept][::-1], vectors[:, kept][:, ::-1]
    signs = np.sign(vectors[-1])  # the last point lies to the right and above
    vectors = vectors * np.where(signs == 0, 1.0, signs)
    return Principal(variances=values, coordinates=vectors * np.sqrt(values), weights=vectors / np.sqrt(values))


def centred(products: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Inner products of differences from the mean.

    Args:
        products: ⟨xᵢ, xⱼ⟩.

    Returns:
        ⟨xᵢ − x̄, xⱼ − x̄⟩.
    """
    rows = products - products.mean(0)
    return rows - rows.mean(1)[:, None]


def random_walk(products: Float[np.ndarray, "n n"], runs: Sequence[Sequence[int]]) -> Float[np.ndarray, "n n"]:
    """Inner products that walks of the same starts and the same segment lengths would have, were their directions free.

    In many dimensions independent directions are orthogonal, so the inner product of two points of a walk is the sum of
    squared segments up to the earlier one. Such a walk has most of its variance in two components, along which it draws
    a cosine (Antognini and Sohl-Dickstein 2018): what a trajectory shows must be held against that.

    Args:
        products: Those of the trajectory.
        runs: For each run the indices of its points, in order.

    Returns:
        Shape (n, n).
    """
    found = np.zeros_like(products)
    starts = [run[0] for run in runs]
    for one in runs:
        for two in runs:
            found[np.ix_(one, two)] = products[one[0], two[0]] if starts else 0.0
    for run in runs:
        steps = [products[b, b] - 2 * products[a, b] + products[a, a] for a, b in itertools.pairwise(run)]
        length = np.concatenate([[0.0], np.cumsum(np.maximum(steps, 0.0))])
        found[np.ix_(run, run)] += np.minimum(length[:, None], length[None, :])
    return found


def straightness(products: Float[np.ndarray, "n n"], run: Sequence[int]) -> float:
    """Mean cosine between consecutive segments of a run: 1 on a straight line, 0 for a random walk.

    Args:
        products: ⟨xᵢ, xⱼ⟩.
        run: The indices of its points, in order; at least three.

    Returns:
        In [−1, 1]; NaN where it does not move.
    """
    steps = np.zeros((len(run) - 1, len(products)))
    for row, (a, b) in enumerate(itertools.pairwise(run)):
        steps[row, b] += 1.0
        steps[row, a] -= 1.0
    inner = steps @ products @ steps.T
    lengths = np.sqrt(np.maximum(np.diag(inner), 0.0))
    cosines = [
        inner[i, i + 1] / (lengths[i] * lengths[i + 1])
        for i in range(len(lengths) - 1)
        if lengths[i] * lengths[i + 1] > 0
    ]
    return float(np.mean(cosines)) if cosines else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """How several runs lie to each other while they move.

    Args:
        drift: How far their mean moves from the middle of the common steps to the last, in units of the weights.
        along: Root mean square distance of the runs from their mean at the last step, along the drift.
        across: The same, across the drift.
        across_before: The same at the middle.
        position: Where each point lies along the drift from the mean at the middle, shape (n,).
    """

    drift: float
    along: float
    across: float
    across_before: float
    position: np.ndarray

    @property
    def ratio(self) -> float:
        """Drift along per spread across: large where runs go the same way, close together."""
        return self.drift / self.across if self.across else math.inf

    @property
    def contraction(self) -> float:
        """Spread across at the end as a share of that at the middle: below 1 where runs come together."""
        return self.across / self.across_before if self.across_before else math.nan


def channel(products: Float[np.ndarray, "n n"], steps: Sequence[Sequence[int]]) -> Channel:
    """Spread across and along the common drift of runs.

    Args:
        products: ⟨xᵢ, xⱼ⟩ of differences from any reference.
        steps: For each common step, in order, the index of every run's point; two runs and three steps at least.

    Returns:
        The distances.
    """
    n = len(products)

    def mean(step: Sequence[int]) -> np.ndarray:
        found = np.zeros(n)
        found[list(step)] = 1 / len(step)
        return found

    middle, last = steps[len(steps) // 2], steps[-1]
    way = mean(last) - mean(middle)
    drift = math.sqrt(max(float(way @ products @ way), 0.0))
    unit = way / drift if drift else way

    def spread(step: Sequence[int]) -> tuple[float, float]:
        apart = np.eye(n)[list(step)] - mean(step)
        along = apart @ products @ unit
        whole = np.einsum("ri,ij,rj->r", apart, products, apart)
        return math.sqrt(np.square(along).mean()), math.sqrt(max(float((whole - along**2).mean()), 0.0))

    along, across = spread(last)
    position = (np.eye(n) - mean(middle)) @ products @ unit
    return Channel(drift=drift, along=along, across=across, across_before=spread(middle)[1], position=position)
