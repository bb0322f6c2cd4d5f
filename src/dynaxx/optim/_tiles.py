"""How a tensor is laid out as a matrix and cut into blocks of nearly equal size."""

import math
from functools import cache
from typing import NamedTuple

from torch import Tensor


class Tile(NamedTuple):
    """A rectangle of `down` × `across` blocks of one shape.

    Args:
        top: First row in the matrix.
        left: First column.
        down: Blocks one above the other.
        across: Blocks side by side.
        m: Rows of a block.
        n: Columns of a block.
        rows: Whether the rows are rotated (have a factor).
        columns: Whether the columns are.
    """

    top: int
    left: int
    down: int
    across: int
    m: int
    n: int
    rows: bool
    columns: bool

    @property
    def blocks(self) -> int:
        """Blocks in the rectangle."""
        return self.down * self.across

    def view(self, matrix: Tensor) -> Tensor:
        """The blocks within a matrix.

        Args:
            matrix: Shape (rows, columns).

        Returns:
            A view, shape (down, across, m, n).
        """
        row, column = matrix.stride()
        return matrix.as_strided(  # one call instead of five: on small blocks calls are what a step costs
            (self.down, self.across, self.m, self.n),
            (self.m * row, self.n * column, row, column),
            matrix.storage_offset() + self.top * row + self.left * column,
        )

    def cut(self, matrix: Tensor) -> Tensor:
        """The blocks in a row.

        Args:
            matrix: Shape (rows, columns).

        Returns:
            Shape (down · across, m, n); a view where there is one row or column of blocks, else a copy.
        """
        return self.view(matrix).flatten(0, 1)

    def paste(self, blocks: Tensor, matrix: Tensor) -> None:
        """Write blocks into their places.

        Args:
            blocks: Shape (down · across, m, n).
            matrix: Shape (rows, columns); written to.
        """
        self.view(matrix).copy_(blocks.unflatten(0, (self.down, self.across)))


class Tiling(NamedTuple):
    """A tensor as a matrix of blocks; without tiles it is treated entry by entry."""

    rows: int
    columns: int
    tiles: tuple[Tile, ...]


@cache
def tiling(shape: tuple[int, ...], block_size: int, max_dim: int) -> Tiling:
    """Lay out a tensor.

    Dimensions are merged into two, neighbours together, such that the matrix is as square as can be: a convolution's
    (64, 3, 7, 7) becomes 64 × 147. A side longer than `block_size` is cut into the fewest pieces of nearly equal
    length, so that there are at most four shapes of blocks; one longer than `max_dim` is neither cut nor rotated.

    Args:
        shape: Of the tensor.
        block_size: Most rows and columns of a block.
        max_dim: Longest side that is rotated.

    Returns:
        The layout; no tiles for vectors, scalars, tensors without entries and matrices with both sides too long.

    Example:
        >>> [(tile.blocks, tile.m, tile.n) for tile in tiling((10, 6), 4, 100).tiles]
        [(2, 4, 3), (4, 3, 3)]
    """
    if len(shape) < 2 or 0 in shape:
        return Tiling(math.prod(shape), 1, ())
    halves = [(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape))]
    rows, columns = min(halves, key=max)
    turned = (1 < rows <= max_dim, 1 < columns <= max_dim)
    if 1 in (rows, columns) or not any(turned):
        return Tiling(rows, columns, ())
    tiles = tuple(
        Tile(top, left, down, across, m, n, *turned)
        for top, down, m in _spans(rows, block_size if turned[0] else rows)
        for left, across, n in _spans(columns, block_size if turned[1] else columns)
    )
    return Tiling(rows, columns, tiles)


def _spans(length: int, size: int) -> list[tuple[int, int, int]]:
    """Start, number and length of pieces; the longer ones first."""
    short, longer = divmod(length, -(-length // size))
    count = -(-length // size)
    spans = [(0, longer, short + 1), (longer * (short + 1), count - longer, short)]
    return [span for span in spans if span[1]]
