"""The weighted mean of states that stream by: the memory of one state, however many there are."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from dynaxx.core.parameters import some
from dynaxx.errors import BadInput

Shapes = Mapping[str, tuple[int, ...]]


class Mean:
    """Σ wⱼ xⱼ / Σ wⱼ, in float32, or float64 for what is float64.

    Each state moves the mean by its share, m ← m + (wⱼ/Wⱼ)(xⱼ − m), so that entries which are equal in all states stay
    as they are to the last bit, the infinities of masks included. What is not floating-point is of the newest state.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.weight = 0.0
        self._newest = -1

    def add(self, state: Iterable[tuple[str, Tensor]], weight: float, age: int) -> None:
        """Take in a state; one that breaks off half-way leaves a mean that is of no use.

        Args:
            state: Name → tensor, once each, the same names and shapes every time.
            weight: More than 0.
            age: The greater, the newer.
        """
        total = self.weight + weight
        first = not self.tensors
        for name, value in state:
            if first:
                self.tensors[name] = value.to(wide(value.dtype), copy=True)
            elif _averaged(value):
                self.tensors[name] = _moved(self.tensors[name], value, weight / total)
            elif age > self._newest:
                self.tensors[name].copy_(value)
        self.weight, self._newest = total, max(age, self._newest)

    def with_one(self, state: Iterable[tuple[str, Tensor]], weight: float) -> Iterator[tuple[str, Tensor]]:
        """The mean as it would be with one state more, tensor by tensor; it stays as it is.

        Args:
            state: As in `add`.
            weight: More than 0.

        Yields:
            Name and tensor.
        """
        share = weight / (self.weight + weight)
        for name, value in state:
            yield name, _moved(self.tensors[name], value, share) if _averaged(value) else self.tensors[name]


def between(one: Mapping[str, Tensor], other: Iterable[tuple[str, Tensor]], t: float) -> Iterator[tuple[str, Tensor]]:
    """(1 − t)·one + t·other, tensor by tensor; what is not floating-point is of the first.

    Args:
        one: Name → tensor.
        other: Likewise, streamed.
        t: In [0, 1].

    Yields:
        Name and tensor.
    """
    for name, value in other:
        yield name, _moved(one[name].to(wide(value.dtype)), value, t) if _averaged(value) else one[name]


def checked(state: Iterable[tuple[str, Tensor]], shapes: Shapes, whose: str) -> Iterator[tuple[str, Tensor]]:
    """A state as it streams by, refused where its names or shapes are not those that are expected.

    Args:
        state: Name → tensor.
        shapes: What is expected.
        whose: What it is called in messages.

    Yields:
        Name and tensor.

    Raises:
        BadInput: It is of another architecture; the message names tensors.
    """
    left = set(shapes)
    for name, value in state:
        if name not in shapes:
            raise BadInput(f"{_other(whose)} it has besides {name} {tuple(value.shape)}. {_REMEDY}")
        if tuple(value.shape) != shapes[name]:
            raise BadInput(f"{_other(whose)} {name} is {tuple(value.shape)}, not {shapes[name]}. {_REMEDY}")
        left.discard(name)
        yield name, value
    if left:
        raise BadInput(f"{_other(whose)} it lacks {some(sorted(left))}. {_REMEDY}")


_REMEDY = "Blend checkpoints of one model."


def _other(whose: str) -> str:
    return f"blend: {whose} is of another architecture:"


def wide(dtype: torch.dtype) -> torch.dtype:
    """In which type a mean of this type is taken.

    Args:
        dtype: Of the entries.

    Returns:
        float32 at least for what is floating-point; else the type itself.
    """
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point or dtype.is_complex else dtype


def _averaged(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _moved(mean: Tensor, value: Tensor, share: float) -> Tensor:
    dtype = torch.promote_types(mean.dtype, wide(value.dtype))
    mean, value = mean.to(dtype), value.to(mean.device, dtype)
    moved = torch.lerp(mean, value, share)
    # ∞ − ∞ is no number: masks must stay.
    return moved if bool(torch.isfinite(moved).all()) else torch.where(mean == value, mean, moved)
