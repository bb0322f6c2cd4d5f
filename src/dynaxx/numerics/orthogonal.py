"""Gram–Schmidt to rounding: rows cleared of a basis, and made orthonormal; rows that add nothing are dropped."""

import torch
from jaxtyping import Float
from torch import Tensor

from dynaxx.numerics.space import Space


def cleared(
    space: Space, rows: Float[Tensor, "k n"], basis: Float[Tensor, "q n"]
) -> tuple[Float[Tensor, "k n"], Float[Tensor, "k q"]]:
    """What rows have outside a basis, rows = parts · basis + rest, with the rest clear of it to rounding.

    Gram–Schmidt twice: one pass leaves what rounding makes of the parts, twice is enough (Giraud, Langou and Rozložník
    2005). Nothing waits for the device.

    Args:
        space: Gives inner products over all shards.
        rows: Shape (k, n).
        basis: Orthonormal rows, shape (q, n).

    Returns:
        The rest, and the parts.

    Example:
        >>> rest, parts = cleared(Space.plain(2), torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]))
        >>> rest, parts
        (tensor([[0., 4.]]), tensor([[3.]]))
    """
    parts = space.gram(rows, basis)
    rest = rows - parts @ basis
    again = space.gram(rest, basis)
    return rest - again @ basis, parts + again


def orthonormal(
    space: Space, rows: Float[Tensor, "k n"], basis: Float[Tensor, "q n"] | None = None, *, floor: float | None = None
) -> tuple[Float[Tensor, "new n"], Float[Tensor, "all k"]]:
    """Extend a basis: rows = Cᵀ [basis; new] with orthonormal rows throughout.

    Block Gram–Schmidt, twice: one pass leaves the new rows oblique where little of a row is new (Giraud, Langou and
    Rozložník 2005). Costs 8 (q + k) k n operations, and one wait for the device a row and pass.

    Args:
        space: Gives inner products over all shards.
        rows: What to add, shape (k, n).
        basis: Orthonormal rows, shape (q, n); None: there are none.
        floor: A row of which no more than this norm is new is dropped; None: 100 times the rounding of its longest row.

    Returns:
        The new rows, at most k; and C, shape (q + new, k), float64 on the host.

    Example:
        >>> rows = torch.tensor([[3.0, 4.0], [6.0, 8.0]], dtype=torch.float64)
        >>> orthonormal(Space.plain(2), rows)
        (tensor([[0.6000, 0.8000]], dtype=torch.float64), tensor([[ 5., 10.]], dtype=torch.float64))
    """
    held = rows[:0] if basis is None else basis
    if floor is None:
        floor = 100 * torch.finfo(rows.dtype).eps * float(space.norms(rows).max())
    along, new, inner = _pass(space, rows, held, floor)
    # A unit row that loses half of itself to the second pass was rounding, not a direction.
    again, new, outer = _pass(space, new, held, 0.5)
    return new, torch.cat([along + again @ inner, outer @ inner])


def _pass(space: Space, rows: Tensor, basis: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients along the basis, new orthonormal rows, and coefficients along those."""
    along = space.gram(basis, rows)
    rest = rows - along.T @ basis
    new = torch.empty_like(rest)
    inner = torch.zeros(len(rest), len(rest), dtype=torch.float64)
    found = 0
    for j in range(len(rest)):
        row, parts = cleared(space, rest[j : j + 1], new[:found])
        inner[:found, j] = parts[0].cpu().double()
        if (norm := float(space.norms(row)[0])) > floor:
            new[found] = row[0] / norm
            inner[found, j] = norm
            found += 1
    return along.cpu().double(), new[:found], inner[:found]
