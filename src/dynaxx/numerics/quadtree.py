"""Adaptive refinement of a function on a rectangle: points go where the surface so far foretells them worst."""

import numpy as np
from jaxtyping import Bool, Float

from dynaxx.errors import BadInput

TWICE = 2
"""The finest lattice is halved so many times more before it is read off linearly, which then costs no accuracy."""
EDGE = 0.1
"""Of the range: what a cell that the edge of a wall runs through counts for, so that edges are found, but not at any
price."""
_NOTHING = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


class Quadtree:
    """A function on a rectangle, known on a lattice of cells that are halved one by one; stop after any batch.

    Between points it is interpolated level by level: a new lattice point is foretold by cubics through four points of
    the coarser lattice along each axis (Deslauriers and Dubuc 1989), and the value found there, less that, is its
    detail. For smooth functions details shrink 16-fold a level, so a cell is halved where |detail| × side is largest:
    its children's share of the squared error. A value that is not finite is a wall: cubics do not reach across it, and
    the cells beside it are halved to find its edge.

    Args:
        x: Ends of the rectangle.
        y: Likewise.
        cells: Cells along each side at the start; the first (2 · cells + 1)² points are taken in any case.
        levels: How many times a cell can be halved.

    Raises:
        BadInput: A side is empty, or there are fewer than 3 cells, too few for a cubic.

    Example:
        >>> tree = Quadtree((0.0, 1.0), (0.0, 2.0))
        >>> while len(points := tree.ask(50)) and tree.count < 300:
        ...     tree.tell(points[:, 0] ** 3 * points[:, 1])
        >>> round(float(tree.surface(np.array([0.3]), np.array([1.7]))[0, 0]), 5)  # 0.3³ · 1.7
        0.0459
    """

    def __init__(self, x: tuple[float, float], y: tuple[float, float], *, cells: int = 4, levels: int = 5) -> None:
        if not (x[0] < x[1] and y[0] < y[1]):
            raise BadInput(f"Quadtree(x, y): each side must have a length. Got {x} and {y}.")
        if cells < 3 or levels < 1:
            raise BadInput(f"Quadtree(cells=..., levels=...) must be at least 3 and 1. Got {cells} and {levels}.")
        self._x, self._y, self._cells, self._levels = x, y, cells, levels
        side = cells * 2**levels + 1
        self._values = np.full((side, side), np.nan)
        self._known = np.zeros((side, side), dtype=bool)
        self._detail = np.zeros((side, side))
        self._open: dict[tuple[int, int, int], tuple[float, bool]] = {}
        self._asked = _NOTHING
        self._splitting: list[tuple[int, int, int]] = []

    @property
    def count(self) -> int:
        """Points that are known."""
        return int(self._known.sum())

    def ask(self, count: int) -> Float[np.ndarray, "points 2"]:
        """The next points to take, the same for the same history.

        Args:
            count: At most so many, and at least 5; the first two lattices are asked for whole.

        Returns:
            (x, y) in rows; none where every cell is as small as it gets, or foretold to the last bit.
        """
        rows, columns = self._next(count)
        self._asked = rows, columns
        last = len(self._values) - 1
        x = self._x[0] + (self._x[1] - self._x[0]) * columns / last
        y = self._y[0] + (self._y[1] - self._y[0]) * rows / last
        return np.column_stack([x, y])

    def tell(self, values: Float[np.ndarray, " points"]) -> None:
        """Take in the values at the points asked for last.

        Args:
            values: One per point, in order.

        Raises:
            BadInput: There is another number of them.
        """
        rows, columns = self._asked
        if len(values) != len(rows):
            raise BadInput(
                f"Quadtree.tell(values) needs one value per point asked for, {len(rows)}. Got {len(values)}."
            )
        self._asked = _NOTHING
        foretold, good = self._foretold()[rows, columns], np.isfinite(values)
        self._values[rows, columns] = np.where(good, values, np.nan)
        self._known[rows, columns] = True
        both = good & np.isfinite(foretold)
        self._detail[rows, columns] = np.abs(np.where(both, values, 0.0) - np.where(both, foretold, 0.0))
        self._halve()

    @property
    def span(self) -> tuple[float, float]:
        """Smallest and largest finite value; (0, 0) where there is none."""
        good = self._values[np.isfinite(self._values)]
        return (float(good.min()), float(good.max())) if good.size else (0.0, 0.0)

    def surface(
        self, x: Float[np.ndarray, " columns"], y: Float[np.ndarray, " rows"]
    ) -> Float[np.ndarray, "rows columns"]:
        """The function on a grid.

        Args:
            x: Positions within the rectangle.
            y: Likewise.

        Returns:
            Shape (rows, columns); NaN within a wall.
        """
        fine = self._foretold()
        for _ in range(TWICE):
            fine = _halved(_halved(fine).T).T
        last = len(fine) - 1
        at = [
            np.clip((np.asarray(p) - ends[0]) / (ends[1] - ends[0]) * last, 0, last)
            for p, ends in ((y, self._y), (x, self._x))
        ]
        lower = [np.minimum(np.floor(a).astype(np.int64), last - 1) for a in at]
        v, u = (a - i for a, i in zip(at, lower, strict=True))
        i, j = lower
        upper = _mixed(fine[np.ix_(i, j)], fine[np.ix_(i, j + 1)], u[None])
        below = _mixed(fine[np.ix_(i + 1, j)], fine[np.ix_(i + 1, j + 1)], u[None])
        return _mixed(upper, below, v[:, None])

    def _next(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        stride = 2**self._levels
        if not self._known.any():
            lattice = np.mgrid[0 : len(self._values) : stride, 0 : len(self._values) : stride]
            return lattice[0].ravel(), lattice[1].ravel()
        worth = self._worth()
        order = sorted(worth, key=lambda cell: (-worth[cell], cell))
        if self.count == (self._cells + 1) ** 2:
            self._splitting = order  # the second lattice whole: of what the first does not show, no cell could tell
        else:
            self._splitting = [cell for cell in order[: max(1, count // 5)] if worth[cell] > 0]
        wanted = np.zeros_like(self._known)
        for level, i, j in self._splitting:
            side = stride >> level
            wanted[i : i + side + 1 : side // 2, j : j + side + 1 : side // 2] = True
        rows, columns = np.nonzero(wanted & ~self._known)
        return rows, columns

    def _halve(self) -> None:
        """Replace the cells whose points are known now by their children."""
        stride = 2**self._levels
        if not self._splitting:
            sides = range(0, len(self._values) - 1, stride)
            self._open = {(0, i, j): (1.0, False) for i in sides for j in sides}
            return
        for cell in self._splitting:
            level, i, j = cell
            del self._open[cell]
            half = (stride >> level) // 2
            if half == 1:
                continue
            for a in (i, i + half):
                for b in (j, j + half):
                    self._open[level + 1, a, b] = self._corners(a, b, half)

    def _worth(self) -> dict[tuple[int, int, int], float]:
        """What halving each cell promises: its detail, times its side.

        The edge of a wall is worth a share of the range, as it is by now, however well its neighbours were foretold.
        """
        low, high = self.span
        edge = EDGE * (high - low)
        return {cell: max(detail, edge * wall) * 2.0 ** -cell[0] for cell, (detail, wall) in self._open.items()}

    def _corners(self, i: int, j: int, side: int) -> tuple[float, bool]:
        """The largest detail at those corners of a cell that came with it, and whether the edge of a wall is within."""
        corners = np.ix_((i, i + side), (j, j + side))
        young = (np.array([i, i + side])[:, None] // side % 2 == 1) | (np.array([j, j + side]) // side % 2 == 1)
        walls = np.isnan(self._values[corners])
        return float(self._detail[corners][young].max()), bool(walls.any() and not walls.all())

    def _foretold(self) -> Float[np.ndarray, "side side"]:
        """Every lattice point: the value where it is known, else what the coarser lattices foretell."""
        stride = 2**self._levels
        held = self._values[::stride, ::stride]
        while stride > 1:
            stride //= 2
            known: Bool[np.ndarray, "n n"] = self._known[::stride, ::stride]
            held = np.where(known, self._values[::stride, ::stride], _halved(_halved(held).T).T)
        return held


def _halved(values: np.ndarray) -> np.ndarray:
    """Rows at half the spacing: cubic through four neighbours, linear beside a wall."""
    n = len(values)
    middle = np.empty((n - 1, *values.shape[1:]))
    middle[1:-1] = (9 * (values[1:-2] + values[2:-1]) - values[:-3] - values[3:]) / 16
    for side in (values, values[::-1]):
        end = (5 * side[0] + 15 * side[1] - 5 * side[2] + side[3]) / 16
        middle[0 if side is values else -1] = end
    linear = (values[:-1] + values[1:]) / 2
    found = np.empty((2 * n - 1, *values.shape[1:]))
    found[::2], found[1::2] = values, np.where(np.isfinite(middle), middle, linear)
    return found


def _mixed(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(1 − share) a + share b, where a share of 0 or 1 does not see the other's wall."""
    return np.where(share == 0, a, np.where(share == 1, b, (1 - share) * a + share * b))
