"""Eigenbases of Kronecker factors, warm-started and batched, and what changes of basis do to moments."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def rotated(
    blocks: Float[Tensor, "b m n"], left: Float[Tensor, "b m m"] | None, right: Float[Tensor, "b n n"] | None
) -> Float[Tensor, "b m n"]:
    """Coordinates in a Kronecker basis, Q_Lᵀ X Q_R.

    Args:
        blocks: X, shape (b, m, n).
        left: Q_L, orthogonal, shape (b, m, m); None: the identity.
        right: Q_R, orthogonal, shape (b, n, n); None: the identity.

    Returns:
        Shape (b, m, n).
    """
    if left is not None:
        blocks = torch.bmm(left.mT, blocks)
    return blocks if right is None else torch.bmm(blocks, right)


def unrotated(
    blocks: Float[Tensor, "b m n"], left: Float[Tensor, "b m m"] | None, right: Float[Tensor, "b n n"] | None
) -> Float[Tensor, "b m n"]:
    """Back from coordinates in a Kronecker basis, Q_L X Q_Rᵀ: the inverse of `rotated`.

    Args:
        blocks: X, shape (b, m, n).
        left: Q_L; None: the identity.
        right: Q_R; None: the identity.

    Returns:
        Shape (b, m, n).
    """
    if left is not None:
        blocks = torch.bmm(left, blocks)
    return blocks if right is None else torch.bmm(blocks, right.mT)


def carried(
    second: Float[Tensor, "b m n"], left: Float[Tensor, "b m m"] | None, right: Float[Tensor, "b n n"] | None
) -> Float[Tensor, "b m n"]:
    """Second moments in a new basis by the Hadamard rule, (Q_L∘Q_L)ᵀ V (Q_R∘Q_R).

    It is the diagonal of the rotated covariance where the covariance was diagonal before; it keeps every entry
    non-negative and the sum as it was. With transposed bases it is the way back.

    Args:
        second: V, second moments by entry, shape (b, m, n).
        left: Q_L, whose columns are the new axes in the old ones; None: the identity.
        right: Q_R likewise; None: the identity.

    Returns:
        Shape (b, m, n).

    Example:
        >>> turn = torch.tensor([[[0.6, -0.8], [0.8, 0.6]]])
        >>> carried(torch.tensor([[[1.0], [0.0]]]), turn, None).flatten()
        tensor([0.3600, 0.6400])
    """
    return rotated(second, None if left is None else left.square(), None if right is None else right.square())


def permuted(
    second: Float[Tensor, "b m n"], left: Int[Tensor, "b m"] | None, right: Int[Tensor, "b n"] | None
) -> Float[Tensor, "b m n"]:
    """Entries by axis, in a new order of the axes.

    Args:
        second: By axis, shape (b, m, n).
        left: Which old axis each new one of the rows is, shape (b, m); None: as they are.
        right: The same of the columns, shape (b, n).

    Returns:
        Shape (b, m, n).

    Example:
        >>> permuted(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[1, 0]]), None).flatten()
        tensor([2., 1.])
    """
    # Rows are copied whole, and only columns gathered one by one: a quarter of the time of indexing both at once.
    if left is not None:
        places = left + second.shape[1] * torch.arange(len(second), device=second.device)[:, None]
        second = second.flatten(0, 1).index_select(0, places.flatten()).view_as(second)
    return second if right is None else second.gather(2, right[:, None, :].expand_as(second))


def eigenpairs(
    factors: Float[Tensor, "b m m"],
) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b m m"], Bool[Tensor, " b"]]:
    """Eigenvalues, largest first, and eigenvectors of symmetric matrices; a failure of one leaves the others alone.

    One batched call; where it fails, each matrix on its own, then in float64. Waits for the device.

    Args:
        factors: Symmetric matrices, shape (b, m, m).

    Returns:
        Eigenvalues (b, m), eigenvectors as columns (b, m, m), and which of the matrices were decomposed (b).
    """
    try:
        values, vectors = torch.linalg.eigh(factors)
    except torch.linalg.LinAlgError:
        values, vectors = map(torch.stack, zip(*map(_eigenpairs_alone, factors), strict=True))
    done = values.isfinite().all(-1) & vectors.isfinite().all(-1).all(-1)
    return values.flip(-1), vectors.flip(-1), done


def _eigenpairs_alone(factor: Tensor) -> tuple[Tensor, Tensor]:
    for dtype in (factor.dtype, torch.float64):
        try:
            values, vectors = torch.linalg.eigh(factor.to(dtype))
        except torch.linalg.LinAlgError:
            continue
        return values.to(factor.dtype), vectors.to(factor.dtype)
    return torch.full_like(factor[0], torch.nan), torch.full_like(factor, torch.nan)


def tracked(
    factors: Float[Tensor, "b m m"], basis: Float[Tensor, "b m m"]
) -> tuple[Float[Tensor, "b m m"], Int[Tensor, "b m"], Bool[Tensor, " b"]]:
    """Eigenbases that have moved a little: one step of orthogonal iteration from the last ones, by QR.

    QR takes half the time of a full decomposition. The product A Q is lifted by 64 m ε ‖A‖ Q, so that where A has no
    rank the old directions stay instead of being drawn from rounding (after HeavyBall, 2025).

    Args:
        factors: A, symmetric, shape (b, m, m).
        basis: Q, the last eigenbases, columns.

    Returns:
        New bases, columns by falling Rayleigh quotient; which old column each came from (b, m); and which succeeded.
    """
    # Held by rows, (A Q)ᵀ: sorting copies whole rows, and LAPACK, which wants columns together, needs no transpose.
    rows = torch.bmm(basis.mT, factors)
    along = (basis.mT * rows).sum(-1)
    order = along.argsort(dim=-1, descending=True, stable=True)
    lift = 64 * basis.shape[-1] * torch.finfo(basis.dtype).eps * along.abs().amax(-1)
    rows.addcmul_(basis.mT, lift[:, None, None])
    places = order + basis.shape[-1] * torch.arange(len(order), device=order.device)[:, None]
    sorted_rows = rows.flatten(0, 1).index_select(0, places.flatten()).view_as(rows)
    packed, reflectors = torch.geqrf(sorted_rows.mT)  # without the triangle, which torch.linalg.qr copies out
    new = torch.linalg.householder_product(packed, reflectors)
    diagonal = packed.diagonal(dim1=-2, dim2=-1)  # what is not finite in A is in here, at a fraction of its size
    return new, order, ((diagonal != 0) & diagonal.isfinite()).all(-1)


def quotients(factors: Float[Tensor, "b m m"], basis: Float[Tensor, "b m m"]) -> Float[Tensor, "b m"]:
    """Rayleigh quotients of the columns of a basis, diag(Qᵀ A Q): the eigenvalues where Q is the eigenbasis.

    Args:
        factors: A, symmetric, shape (b, m, m).
        basis: Q, orthonormal columns.

    Returns:
        Shape (b, m).
    """
    return (basis * torch.bmm(factors, basis)).sum(-2)


def repaired(values: Float[Tensor, "b m"], floor: float = 0.0) -> Float[Tensor, "b m"]:
    """Eigenvalues of a positive matrix, as they were before rounding: none below what rounding leaves of nothing.

    A decomposition is exact for a matrix within m ε λ₁ of the given one, so values below that are not known; they are
    set to it.

    Args:
        values: Eigenvalues, shape (b, m).
        floor: Least value besides.

    Returns:
        Positive eigenvalues (b, m).

    Example:
        >>> repaired(torch.tensor([[4.0, -1e-9]], dtype=torch.float64), 1e-12)
        tensor([[4.0000e+00, 1.0000e-12]], dtype=torch.float64)
    """
    noise = values.shape[-1] * torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True)
    return torch.maximum(values, noise.clamp_min(max(floor, torch.finfo(values.dtype).tiny)))
