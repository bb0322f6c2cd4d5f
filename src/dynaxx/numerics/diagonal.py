"""The diagonal of an operator, and the traces of its diagonal blocks, by random products with standard errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dynaxx.core.chart import Estimate
from dynaxx.errors import BadInput, UnknownName
from dynaxx.numerics.lanczos import Eigenpairs
from dynaxx.numerics.operator import Operator
from dynaxx.numerics.space import Space
from dynaxx.numerics.trace import CHUNK, mean, probes


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagonal:
    """The diagonal of an operator, entry by entry.

    Args:
        values: Estimates of aᵢᵢ, shape (n,).
        errors: Their standard errors, shape (n,).
        products: Vectors that were multiplied.
    """

    values: Float[Tensor, " n"]
    errors: Float[Tensor, " n"]
    products: int


def diagonal(operator: Operator, budget: int, *, known: Eigenpairs | None = None, seed: int = 0) -> Diagonal:
    """The diagonal by the mean of x ∘ Ax over random signs x (Bekas, Kokiopoulou and Saad 2007).

    Unbiased; the variance of entry i is Σ_{j≠i} aᵢⱼ² a probe, so a diagonal matrix is exact from two. Of known pairs,
    B = Σ θuuᵀ is taken exactly and A − B is probed, which is unbiased however good they are.

    Args:
        operator: A.
        budget: Products that may be taken, at least 2.
        known: Orthonormal vectors with their Rayleigh quotients.
        seed: Of the random vectors.

    Returns:
        The diagonal with its errors.

    Raises:
        BadInput: The budget is below 2.

    Example:
        >>> from dynaxx.numerics.operator import Dense
        >>> diagonal(Dense(torch.diag(torch.tensor([1.0, 2.0]))), budget=2).values
        tensor([1., 2.])
    """
    _check(budget)
    space, before = operator.space, operator.products
    total = torch.zeros(space.n, dtype=torch.float64 if space.device.type != "mps" else space.dtype).to(space.device)
    squares = torch.zeros_like(total)
    with operator.opened():
        for rows in probes(space, budget, seed):
            samples = rows * (operator(rows) - _known(space, rows, known))
            total += samples.sum(0)
            squares += samples.square().sum(0)
    values = total / budget
    variances = (squares / budget - values.square()).clamp_min(0.0) / (budget - 1)
    if known is not None:
        values += known.values.to(values) @ known.vectors.to(values).square()
    return Diagonal(
        values=values.to(space.dtype), errors=variances.sqrt().to(space.dtype), products=operator.products - before
    )


def block_traces(
    operator: Operator,
    budget: int,
    blocks: Mapping[str, Sequence[str]] | None = None,
    *,
    known: Eigenpairs | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Traces of the diagonal blocks of A that belong to groups of parameters, all from the same products.

    Args:
        operator: A.
        budget: Products that may be taken, at least 2.
        blocks: Names of parameters by block, such as `objective.layers()`; None: each parameter for itself.
        known: As in `diagonal`.
        seed: Of the random vectors.

    Returns:
        Estimates by block; over blocks that cover all parameters they sum to Hutchinson's estimate of tr A.

    Raises:
        BadInput: The budget is below 2.
        UnknownName: A block names a parameter that the space has not.
    """
    _check(budget)
    space = operator.space
    places = space.slices()
    groups = {name: (name,) for name in places} if blocks is None else blocks
    for name in (name for names in groups.values() for name in names):
        if name not in places:
            raise UnknownName("parameter", name, places)

    def by_group(a: Tensor, b: Tensor) -> Tensor:
        parts = {name: _dots(space, a, b, part) for name, part in places.items()}
        return torch.stack([torch.stack([parts[name] for name in names]).sum(0) for names in groups.values()])

    with operator.opened():
        samples = [by_group(rows, operator(rows) - _known(space, rows, known)) for rows in probes(space, budget, seed)]
    exact = torch.zeros(len(groups), dtype=torch.float64)
    if known is not None:
        for vectors, values in zip(known.vectors.split(CHUNK), known.values.split(CHUNK), strict=True):
            exact += by_group(vectors, vectors).double().cpu() @ values.double()
    found = zip(groups, torch.cat(samples, dim=1), exact.tolist(), strict=True)
    return {name: mean(each, plus) for name, each, plus in found}


def _known(space: Space, rows: Tensor, known: Eigenpairs | None) -> Tensor | float:
    """B times each row."""
    return 0.0 if known is None else (space.gram(rows, known.vectors) * known.values.to(rows)) @ known.vectors


def _dots(space: Space, a: Tensor, b: Tensor, part: slice) -> Tensor:
    """Inner products of rows with rows over some of the entries."""
    if space.n == space.numel:
        return (a[:, part] * b[:, part]).sum(1)
    only = torch.zeros_like(a)  # the space alone knows which rank counts which entry, and it sums whole rows
    only[:, part] = a[:, part]
    return space.gram(only, b).diagonal()


def _check(budget: int) -> None:
    if budget < 2:
        raise BadInput(f"The error of a diagonal needs a budget of at least 2 products. Got {budget}.")
