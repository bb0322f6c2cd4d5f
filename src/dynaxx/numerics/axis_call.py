"""One tensor operation as a rule about axes sees it: its arguments, the axes of its operands, where it was made."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from dynaxx.numerics.axes import Axis, fix, fixed, merge

Axes = tuple[Axis, ...]


class Call:
    """One operation as its rule sees it.

    Args:
        name: Its name without namespace and the "_" of in-place forms ("addmm").
        where: Module and operation, for reasons.
        given: Its arguments by the names of its schema.
        axes: The axes of a tensor.
    """

    def __init__(self, name: str, where: str, given: Mapping[str, Any], axes: Callable[[Tensor], Axes]) -> None:
        self.name, self.where, self.given = name, where, given
        self._axes = axes

    def tensors(self) -> list[Tensor]:
        """Every tensor argument, those in lists too."""
        values = [each for v in self.given.values() for each in (v if isinstance(v, list | tuple) else (v,))]
        return [each for each in values if isinstance(each, Tensor)]

    def axes(self, name: str) -> Axes:
        """The axes of a tensor argument.

        Args:
            name: The argument's name.

        Returns:
            One for each dimension.
        """
        return self._axes(self.given[name])

    def of(self, tensor: Tensor) -> Axes:
        """The axes of a tensor.

        Args:
            tensor: Any tensor.

        Returns:
            One for each dimension.
        """
        return self._axes(tensor)

    def merge(self, one: Axis, two: Axis) -> None:
        """Two axes move together.

        Args:
            one: An axis.
            two: Another of the same length.
        """
        merge(one, two, self.where)

    def fix(self, *axes: Axis) -> None:
        """The order along axes matters to this operation.

        Args:
            axes: Which.
        """
        for axis in axes:
            fix(axis, self.where)

    def fresh(self, shape: Sequence[int]) -> Axes:
        """Axes that matter, of an output.

        Args:
            shape: Their lengths.

        Returns:
            The axes.
        """
        return tuple(fixed(n, self.where) for n in shape)


Rule = Callable[[Call, Any], Any]
"""`(call, outputs) -> axes`: of the output, or a list with those of each output (None: fixed)."""
