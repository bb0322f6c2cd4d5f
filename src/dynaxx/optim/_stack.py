"""Blocks of one shape, of one parameter or several, that go through every matrix operation together."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from dynaxx.optim import _many as many
from dynaxx.optim._tiles import Tile, Tiling

MOST = 1 << 16
"""Entries of the gradients taken together. Joining copies the bases, which small matrices win back in fewer calls and
large ones do not: a step took 4 to 14 % longer at 2²⁰ on blocks of 256 × 256, and as long on blocks of 64 × 64."""


class Work(NamedTuple):
    """A parameter with all that its step needs.

    Args:
        name: For messages.
        parameter: The parameter.
        gradient: Its gradient as a matrix in the precision of the state.
        state: Its state.
        tiling: How it is cut.
        step: Gradients that it has seen before this one.
    """

    name: str
    parameter: Tensor
    gradient: Tensor
    state: dict[str, Tensor]
    tiling: Tiling
    step: int

    def matrix(self, key: str) -> Tensor:
        """A tensor of the state as a matrix.

        Args:
            key: Its key.

        Returns:
            A view, shape (rows, columns).
        """
        return self.state[key].view(self.tiling.rows, self.tiling.columns)


class Piece(NamedTuple):
    """One rectangle of blocks of a parameter."""

    work: Work
    number: int
    tile: Tile


class Stack:
    """Pieces whose blocks have one shape, sides, type, device and age.

    Args:
        pieces: At least one.
    """

    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces = pieces
        self.tile = pieces[0].tile
        self.step = pieces[0].work.step
        self.counts = [piece.tile.blocks for piece in pieces]
        self.gradient = joined([piece.tile.cut(piece.work.gradient) for piece in pieces])

    @property
    def sides(self) -> list[str]:
        """Those that are rotated, of "left" and "right"."""
        return [side for side, turned in (("left", self.tile.rows), ("right", self.tile.columns)) if turned]

    def each(self, key: str) -> list[Tensor]:
        """A state tensor of blocks, of every piece; writing to it writes the state.

        Args:
            key: Without the rectangle's number.

        Returns:
            One tensor a piece.
        """
        return [piece.work.state[f"{key}_{piece.number}"] for piece in self.pieces]

    def all(self, key: str) -> Tensor:
        """A state tensor of blocks, of all pieces; not to be written to.

        Args:
            key: Without the rectangle's number.

        Returns:
            Shape (blocks, …).
        """
        return joined(self.each(key))

    def basis(self, side: str) -> Tensor:
        """Q of a side that is rotated; the state holds its axes as rows, as a QR decomposition leaves them in memory.

        Args:
            side: "left" or "right".

        Returns:
            Shape (blocks, m, m), axes as columns; not to be written to.
        """
        return self.all(f"{side}_axes").mT

    def turn(self, side: str, basis: Tensor) -> None:
        """Put a new basis in place; what `basis` returned before stays as it was.

        Args:
            side: "left" or "right".
            basis: Q, shape (blocks, m, m); not to be used afterwards.
        """
        axes, key = basis.mT, f"{side}_axes"
        if len(self.pieces) == 1:
            self.pieces[0].work.state[f"{key}_{self.pieces[0].number}"] = axes.contiguous()
            return
        for kept, part in zip(self.each(key), axes.split(self.counts), strict=True):
            kept.copy_(part)

    def bases(self) -> tuple[Tensor | None, Tensor | None]:
        """Q_L and Q_R of all blocks; None for a side that is not rotated."""
        return self.basis("left") if self.tile.rows else None, self.basis("right") if self.tile.columns else None

    def entries(self, key: str) -> Tensor:
        """The blocks of a parameter-shaped state tensor; not to be written to.

        Args:
            key: Its key.

        Returns:
            Shape (blocks, m, n).
        """
        return joined([piece.tile.cut(piece.work.matrix(key)) for piece in self.pieces])

    def views(self, key: str) -> list[Tensor]:
        """The same, each piece on its own and as a view.

        Args:
            key: Its key.

        Returns:
            One a piece, shape (down, across, m, n).
        """
        return [piece.tile.view(piece.work.matrix(key)) for piece in self.pieces]

    def split(self, blocks: Tensor) -> list[Tensor]:
        """Blocks by piece, in the shape of its rectangle.

        Args:
            blocks: Shape (blocks, m, n).

        Returns:
            Views, one a piece, shape (down, across, m, n).
        """
        parts = blocks.split(self.counts)
        return [
            part.view(piece.tile.down, piece.tile.across, piece.tile.m, piece.tile.n)
            for piece, part in zip(self.pieces, parts, strict=True)
        ]

    def move(self, directions: Tensor, rate: float) -> None:
        """Take a step, w ← w − η d.

        Args:
            directions: d of all blocks, shape (blocks, m, n).
            rate: η.
        """
        targets: list[Tensor] = []
        updates: list[Tensor] = []
        for piece, part in zip(self.pieces, self.split(directions), strict=True):
            parameter, (rows, columns, _) = piece.work.parameter, piece.work.tiling
            if parameter.is_contiguous():
                targets.append(piece.tile.view(parameter.view(rows, columns)))
                updates.append(part)
            else:  # channels last: no view of it is the matrix
                whole = part.new_zeros(rows, columns)
                piece.tile.view(whole).copy_(part)
                targets.append(parameter)
                updates.append(whole.view(parameter.shape))
        many.add_(targets, updates, alpha=-rate)


def joined(parts: list[Tensor]) -> Tensor:
    """Tensors one behind the other; a single one as it is.

    Args:
        parts: At least one.

    Returns:
        Shape (sum of the first dimensions, …).
    """
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def stacks(works: Iterable[Work]) -> Iterator[Stack]:
    """Sort blocks by shape, and take together as many as is worth it.

    Args:
        works: Parameters with at least one tile.

    Yields:
        Stacks that hold every block once.
    """
    pieces = [Piece(work, i, tile) for work in works for i, tile in enumerate(work.tiling.tiles)]
    for _, alike in groupby(sorted(pieces, key=_kind), key=_kind):
        taken: list[Piece] = []
        size = 0
        for piece in alike:
            entries = piece.tile.blocks * piece.tile.m * piece.tile.n
            if taken and size + entries > MOST:
                yield Stack(taken)
                taken, size = [], 0
            taken.append(piece)
            size += entries
        yield Stack(taken)


def _kind(piece: Piece) -> tuple[int, int, bool, bool, int, str]:
    tile, work = piece.tile, piece.work
    return tile.m, tile.n, tile.rows, tile.columns, work.step, f"{work.gradient.dtype} {work.gradient.device}"
