"""Eigenvalues kept beside the bases, for the methods whose scaling is a Kronecker product itself."""

import torch
from torch import Tensor

from dynaxx.numerics.kronecker import quotients, repaired
from dynaxx.optim._stack import Stack
from dynaxx.optim._tiles import Tile


def value_shapes(tile: Tile) -> dict[str, tuple[int, ...]]:
    """State for the eigenvalues of the sides that are rotated.

    Args:
        tile: The blocks.

    Returns:
        Key → shape.
    """
    sizes = {"left_values": (tile.m, tile.rows), "right_values": (tile.n, tile.columns)}
    return {key: (tile.blocks, size) for key, (size, turned) in sizes.items() if turned}


def values(stack: Stack, side: str) -> Tensor | None:
    """The eigenvalues of a side, none below rounding.

    Args:
        stack: The blocks.
        side: "left" or "right".

    Returns:
        Shape (blocks, m) or (blocks, n); None where the side is not rotated.
    """
    return repaired(stack.all(f"{side}_values")) if side in stack.sides else None


def scaled(blocks: Tensor, stack: Stack, power: float) -> Tensor:
    """Coordinates times powers of their eigenvalues, X_ij λᵢᵖ μⱼᵖ.

    Args:
        blocks: X in the eigenbases, shape (blocks, m, n).
        stack: Gives λ and μ; 1 on a side that is not rotated.
        power: p.

    Returns:
        Shape (blocks, m, n).
    """
    left, right = values(stack, "left"), values(stack, "right")
    if left is not None:
        blocks = blocks * left.pow(power)[:, :, None]
    return blocks if right is None else blocks * right.pow(power)[:, None, :]


def measure_values(stack: Stack, factor: float = 1.0) -> None:
    """Take the eigenvalues anew: Rayleigh quotients of the factors in the bases as they are.

    Args:
        stack: The blocks.
        factor: What they are multiplied by.
    """
    for side in stack.sides:
        found = quotients(stack.all(side), stack.basis(side)) * factor
        for kept, part in zip(stack.each(f"{side}_values"), found.split(stack.counts), strict=True):
            kept.copy_(part)


def outer_values(stack: Stack) -> Tensor:
    """All products λᵢ μⱼ.

    Args:
        stack: Gives λ and μ.

    Returns:
        Shape (blocks, m, n).
    """
    return scaled(torch.ones_like(stack.gradient), stack, 1.0)
