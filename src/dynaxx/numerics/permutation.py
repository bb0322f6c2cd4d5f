"""Reorderings of a network's hidden units that leave its function unchanged: what moves together, and how."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from dynaxx.core.task import derive_seed
from dynaxx.errors import BadInput

Permutation = Mapping[str, Int[Tensor, " units"]]
"""Group → p, by which unit i of the reordered network is unit p(i) of the old one."""
AxisName = str | None | Sequence[tuple[str | None, int]]
"""How a user names an axis: its group, None where the order is fixed, or (group, size) factors, outermost first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One factor of an axis.

    Args:
        group: The group of units that it runs over; None where their order is fixed.
        size: How many units.
    """

    group: str | None
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a group occurs.

    Args:
        name: The tensor.
        index: The factor, counted over all axes of the tensor.
    """

    name: str
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Symmetry:
    """The groups of units of an architecture, and every axis of its tensors that they index.

    An axis may be a product, such as heads × head dimension, or channels × pixels after a flatten: each factor is
    then reordered by its own group.

    Args:
        groups: Group → number of units.
        axes: Parameter or buffer → for each axis its factors, outermost first.
        reasons: Parameter axis, "fc.weight[0]" → why its order is fixed.
    """

    groups: Mapping[str, int]
    axes: Mapping[str, tuple[tuple[Part, ...], ...]]
    reasons: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, axes: Mapping[str, Sequence[AxisName]], shapes: Mapping[str, Sequence[int]]) -> "Symmetry":
        """A symmetry that the user names.

        Args:
            axes: Parameter → one name for each axis; what is not named is fixed.
            shapes: Parameter or buffer → its shape.

        Returns:
            The symmetry; whether it leaves the function unchanged is for `verify` to say.

        Raises:
            BadInput: A parameter is unknown, has another number of axes, or a group has two sizes.

        Example:
            >>> shapes = {"0.weight": (3, 2), "0.bias": (3,), "2.weight": (1, 3)}
            >>> names = {"0.weight": ("hidden", None), "0.bias": ("hidden",), "2.weight": (None, "hidden")}
            >>> dict(Symmetry.of(names, shapes).groups)
            {'hidden': 3}
        """
        groups: dict[str, int] = {}
        found: dict[str, tuple[tuple[Part, ...], ...]] = {}
        for name, given in axes.items():
            shape = shapes.get(name)
            if shape is None or len(shape) != len(given) or isinstance(given, str):
                raise BadInput(
                    f"Symmetry.of({name!r}: ...) must name each axis of a parameter or buffer, "
                    f"shape {None if shape is None else tuple(shape)}. Got {given!r}."
                )
            found[name] = tuple(_parts(name, axis, size) for axis, size in zip(given, shape, strict=True))
            for part in (part for axis in found[name] for part in axis if part.group is not None):
                if groups.setdefault(str(part.group), part.size) != part.size:
                    raise BadInput(
                        f"Symmetry.of({name!r}: ...): the group {part.group!r} has {part.size} units here and "
                        f"{groups[str(part.group)]} elsewhere. Give them two names."
                    )
        return cls(groups=groups, axes=found)

    def factors(self, name: str) -> list[Part]:
        """The factors of all axes of a tensor, in order.

        Args:
            name: The tensor.

        Returns:
            The factors; a tensor of this symmetry can be viewed with their sizes as its shape.
        """
        return [part for axis in self.axes.get(name, ()) for part in axis]

    def places(self, group: str) -> Iterator[Place]:
        """Where a group occurs.

        Args:
            group: Its name.

        Yields:
            The places, tensor by tensor.
        """
        for name in self.axes:
            for index, part in enumerate(self.factors(name)):
                if part.group == group:
                    yield Place(name=name, index=index)

    def identity(self) -> dict[str, Tensor]:
        """The permutation that moves nothing."""
        return {group: torch.arange(size) for group, size in self.groups.items()}

    def random(self, seed: int) -> dict[str, Tensor]:
        """A uniformly random permutation of every group.

        Args:
            seed: Chooses it.

        Returns:
            Group → permutation.
        """
        generator = torch.Generator().manual_seed(derive_seed(seed, "permutation"))
        return {group: torch.randperm(size, generator=generator) for group, size in self.groups.items()}

    def apply(self, tensors: Mapping[str, Tensor], permutation: Permutation) -> dict[str, Tensor]:
        """The tensors with their units reordered.

        Args:
            tensors: Parameters and buffers by name.
            permutation: Group → order.

        Returns:
            New tensors where anything moves; the same objects elsewhere.
        """
        return {name: self.moved(name, tensor, permutation) for name, tensor in tensors.items()}

    def moved(self, name: str, tensor: Tensor, permutation: Permutation, *, but: int | None = None) -> Tensor:
        """One tensor with its units reordered.

        Args:
            name: Its name.
            tensor: The tensor.
            permutation: Group → order; groups that are left out stay.
            but: A factor of it that is left as it is, counted over all axes.

        Returns:
            A tensor of the same shape.
        """
        parts = self.factors(name)
        order = {
            i: permutation[p.group] for i, p in enumerate(parts) if p.group and p.group in permutation and i != but
        }
        if not order:
            return tensor
        out = tensor.reshape([part.size for part in parts])
        for index, units in order.items():
            out = out.index_select(index, units.to(out.device))
        return out.reshape(tensor.shape)


def _parts(name: str, axis: AxisName, size: int) -> tuple[Part, ...]:
    factors = [(axis, size)] if axis is None or isinstance(axis, str) else list(axis)
    if math.prod(n for _, n in factors) != size:
        raise BadInput(
            f"Symmetry.of({name!r}: ...): the factors of an axis must multiply to its length, {size}. Got {axis!r}."
        )
    return tuple(Part(group=group, size=n) for group, n in factors)
