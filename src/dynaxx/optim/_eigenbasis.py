"""The eigenbases of a parameter's Kronecker factors as a change of its coordinates."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dynaxx.numerics.kronecker import rotated, unrotated
from dynaxx.numerics.stability_rules import Rotation
from dynaxx.optim._tiles import Tile, Tiling


class EigenBasis(Rotation):
    """X → Q_Lᵀ X Q_R, block by block; a coordinate is kept where the optimizer keeps what belongs to it.

    It costs 2 m n (m + n) operations for a block of m × n, and refers to the bases rather than copying them.

    Args:
        state: The optimizer's for the parameter, with its bases.
        tiling: How the parameter is cut.
    """

    def __init__(self, state: Mapping[str, Tensor], tiling: Tiling) -> None:
        self._tiling = tiling
        self._bases = [
            tuple(state[f"{side}_axes_{i}"].mT if turned else None for side, turned in _sides(tile))
            for i, tile in enumerate(tiling.tiles)
        ]

    def into(self, entries: Tensor) -> Tensor:
        """Coordinates of entries."""
        return self._mapped(entries, rotated)

    def back(self, coordinates: Tensor) -> Tensor:
        """Entries of coordinates."""
        return self._mapped(coordinates, unrotated)

    def _mapped(self, entries: Tensor, turn: Callable[[Tensor, Tensor | None, Tensor | None], Tensor]) -> Tensor:
        rows, columns, tiles = self._tiling
        found = torch.empty(rows, columns, dtype=entries.dtype, device=entries.device)
        for tile, (left, right) in zip(tiles, self._bases, strict=True):
            tile.paste(turn(tile.cut(entries.reshape(rows, columns)), left, right), found)
        return found.view(entries.shape)


def _sides(tile: Tile) -> tuple[tuple[str, bool], tuple[str, bool]]:
    return ("left", tile.rows), ("right", tile.columns)
