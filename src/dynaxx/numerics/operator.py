"""The contract of every curvature operator: a symmetric linear map that is known by its products alone."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from dynaxx.core.progress import report
from dynaxx.errors import BadInput
from dynaxx.numerics.space import Space


class Operator(ABC):
    """A symmetric linear map A on a space: `operator(rows)` gives A·row for each row, and counts.

    Attributes:
        space: What it acts on.
        products: Vectors multiplied so far.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.products = 0

    def __call__(self, rows: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """Multiply each row.

        Args:
            rows: Shape (k, n).

        Returns:
            A new matrix of shape (k, n).

        Raises:
            BadInput: The rows have another length than the space.
        """
        if rows.dim() != 2 or rows.shape[1] != self.space.n:
            raise BadInput(
                f"{type(self).__name__}(rows) needs vectors as rows, shape (k, {self.space.n}). "
                f"Got {tuple(rows.shape)}."
            )
        self.products += rows.shape[0]
        report(products=rows.shape[0])
        return self.apply(rows)

    @abstractmethod
    def apply(self, rows: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """The products, uncounted.

        Args:
            rows: Shape (k, n).

        Returns:
            Shape (k, n).
        """

    @contextmanager
    def opened(self) -> Generator[None]:
        """Products within share what each alone would set up and put back; a search opens its operator once.

        Only what multiplies belongs within: the modules' modes and the random streams are the objective's there.
        """
        yield

    def dense(self) -> Float[Tensor, "n n"]:
        """The whole matrix, by n products: for small spaces and for tests."""
        eye = torch.eye(self.space.n, dtype=self.space.dtype, device=self.space.device)
        with self.opened():
            matrix = torch.cat([self(rows) for rows in eye.split(64)])
        return (matrix + matrix.T) / 2


class Dense(Operator):
    """A matrix as an operator.

    Args:
        matrix: Symmetric, of shape (n, n).
    """

    def __init__(self, matrix: Float[Tensor, "n n"]) -> None:
        super().__init__(Space.plain(matrix.shape[0], matrix.dtype, matrix.device))
        self.matrix = matrix

    def apply(self, rows: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """Rows times the matrix."""
        return rows @ self.matrix


class Congruent(Operator):
    """D A D with a symmetric D: the preconditioned Hessian P^(-1/2) H P^(-1/2) has D = P^(-1/2).

    It has the eigenvalues of P⁻¹A and, unlike that, is symmetric.

    Args:
        inner: A; its products are counted too.
        root: Multiplies rows by D, and leaves them as they are.
    """

    def __init__(self, inner: Operator, root: Callable[[Tensor], Tensor]) -> None:
        super().__init__(inner.space)
        self.inner = inner
        self.root = root

    def apply(self, rows: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """Scale, multiply, scale."""
        return self.root(self.inner(self.root(rows)))

    @contextmanager
    def opened(self) -> Generator[None]:
        """As the inner one."""
        with self.inner.opened():
            yield
