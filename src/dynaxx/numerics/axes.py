"""Axes of tensors as products of factors, merged where a network's operations make them move together."""

import math
from collections.abc import Sequence
from typing import Self


class Factor:
    """One factor of an axis: its index runs over `size` units that may be reordered, unless something fixed them.

    Factors that move together are merged into one class (union–find); a class of n·m units can be split into n × m
    once a reshape shows that it is a product, for all axes that hold it at once.

    Args:
        size: Number of units.
        fixed: Why their order matters; "" where it does not.
        source: Who made it, for names and messages.
    """

    __slots__ = ("_parent", "_parts", "fixed", "size", "source")

    def __init__(self, size: int, fixed: str = "", source: str = "") -> None:
        self.size, self.fixed, self.source = size, fixed, source
        self._parent: Self | None = None
        self._parts: tuple[Factor, ...] = ()

    @property
    def root(self) -> "Factor":
        """The representative of the class."""
        node: Factor = self
        while node._parent is not None:
            node = node._parent
        return node

    def leaves(self) -> list["Factor"]:
        """What the class is made of now, outermost first; factors of one unit are left out."""
        root = self.root
        if root._parts:
            return [leaf for part in root._parts for leaf in part.leaves()]
        return [root] if root.size != 1 else []

    def fix(self, why: str) -> None:
        """The order of the units matters.

        Args:
            why: What made it so; the first reason is kept.
        """
        for leaf in self.leaves():
            leaf.fixed = leaf.fixed or why

    def split(self, outer: int) -> None:
        """Make it a product of `outer` × the rest.

        Args:
            outer: A divisor of the size.
        """
        root = self.root
        assert not root._parts
        root._parts = tuple(Factor(n, root.fixed, root.source) for n in (outer, root.size // outer))

    def unite(self, other: "Factor") -> None:
        """Move together from now on.

        Args:
            other: A leaf of the same size.
        """
        one, two = self.root, other.root
        if one is not two:
            two._parent = one
            one.fixed = one.fixed or two.fixed


Axis = tuple[Factor, ...]
"""One dimension of a tensor: the product of its factors, outermost first."""


def leaves(axis: Axis) -> list[Factor]:
    """What an axis is made of now.

    Args:
        axis: The axis.

    Returns:
        Its leaves, outermost first.
    """
    return [leaf for factor in axis for leaf in factor.leaves()]


def fixed(size: int, why: str) -> Axis:
    """An axis of its own whose order matters.

    Args:
        size: Number of units.
        why: What made it so.

    Returns:
        The axis.
    """
    return (Factor(size, why),)


def fix(axis: Axis, why: str) -> None:
    """The order along an axis matters.

    Args:
        axis: The axis.
        why: What made it so.
    """
    for factor in axis:
        factor.fix(why)


def merge(one: Axis, two: Axis, why: str) -> None:
    """Two axes of one length are indexed together: unite their factors, splitting them where one is finer.

    Where the factors have no common refinement (4·3 against 3·4) both are fixed.

    Args:
        one: An axis.
        two: Another.
        why: What does it.
    """
    while True:
        pairs = list(zip(leaves(one), leaves(two), strict=False))
        coarse = next(((a, b) for a, b in pairs if a.size != b.size), None)
        if coarse is None:
            break
        large, small = sorted(coarse, key=lambda factor: -factor.size)
        if large.size % small.size:
            fix(one, why)
            fix(two, why)
            return
        large.split(small.size)
    for a, b in pairs:
        a.unite(b)


def reshape(axes: Sequence[Axis], shape: Sequence[int], why: str) -> tuple[Axis, ...]:
    """The axes after a reshape in row-major order.

    Args:
        axes: Those before.
        shape: The new shape.
        why: What does it.

    Returns:
        One axis for each entry of the shape; all are fixed where they do not divide each other.
    """
    rest = [leaf for axis in axes for leaf in leaves(axis)]
    found: list[Axis] = []
    for size in shape:
        taken: list[Factor] = []
        open_size = size
        while open_size > 1 and rest:
            factor = rest[0]
            if factor.size > open_size and factor.size % open_size == 0:
                factor.split(open_size)
                rest = [leaf for each in rest for leaf in each.leaves()]
                factor = rest[0]
            if open_size % factor.size:
                break
            taken.append(rest.pop(0))
            open_size //= factor.size
        if open_size != 1:
            for axis in axes:
                fix(axis, why)
            return tuple(fixed(n, why) for n in shape)
        found.append(tuple(taken))
    assert math.prod(shape) == 0 or not rest
    return tuple(found)
