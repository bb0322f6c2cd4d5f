"""A Krylov basis started at one vector: what Newton's systems are solved in without forming a matrix."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dynaxx.numerics.operator import Operator
from dynaxx.numerics.orthogonal import cleared


@dataclass(frozen=True, slots=True, kw_only=True)
class Krylov:
    """A Qᵀ = Q̲ᵀ T̲: orthonormal rows Q that span b, Ab, A²b, …, and A within them.

    Args:
        rows: Q, shape (m, n).
        matrix: T̲, tridiagonal, shape (m + 1, m); its upper m rows are T = Q A Qᵀ. The last entry is 0 where the
            subspace is invariant.
        norm: ‖b‖; b = ‖b‖ · first row.
    """

    rows: Float[Tensor, "m n"]
    matrix: Float[np.ndarray, "rows m"]
    norm: float

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues, ascending, and eigenvectors in columns, of T."""
        values, vectors = np.linalg.eigh(self.matrix[:-1])
        return values, vectors

    def vector(self, coefficients: np.ndarray) -> Float[Tensor, " n"]:
        """The combination of the rows.

        Args:
            coefficients: Shape (m,).

        Returns:
            Shape (n,).
        """
        return torch.as_tensor(coefficients, dtype=self.rows.dtype, device=self.rows.device) @ self.rows


def krylov(operator: Operator, start: Float[Tensor, " n"], steps: int) -> Krylov:
    """The basis of at most so many steps of the Lanczos process, each vector cleared of all others twice.

    Args:
        operator: A.
        start: b, not zero, shape (n,).
        steps: Most products; it ends earlier where the subspace is invariant. Memory: so many vectors.

    Returns:
        The basis and A within it.
    """
    space = operator.space
    norm = float(space.norms(start[None])[0])
    m = min(steps, space.numel)
    rows = torch.zeros(m, space.n, dtype=start.dtype, device=start.device)
    matrix = np.zeros((m + 1, m))
    row, rounding = start / norm, torch.finfo(start.dtype).eps
    for j in range(m):
        rows[j] = row
        image = operator(row[None])
        matrix[j, j] = float(space.gram(image, row[None]))
        size = float(space.norms(image)[0])
        image, _ = cleared(space, image, rows[: j + 1])  # else ghosts: copies of eigenvalues found already
        rest = float(space.norms(image)[0])
        if rest <= 10 * rounding * max(size, float(np.abs(matrix).max())):
            return Krylov(rows=rows[: j + 1], matrix=matrix[: j + 2, : j + 1], norm=norm)
        matrix[j + 1, j] = rest
        if j + 1 < m:
            matrix[j, j + 1] = rest
            row = image[0] / rest
    return Krylov(rows=rows, matrix=matrix, norm=norm)
