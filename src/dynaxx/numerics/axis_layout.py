"""Rules about axes for operations that move entries without changing them: reshapes, slices, concatenations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dynaxx.numerics.axes import Axis, Factor, fixed, reshape
from dynaxx.numerics.axis_call import Axes, Call


def constant(call: Call, out: Tensor) -> Axes:
    """All entries are alike, so their order is free.

    Args:
        call: The operation.
        out: Its output.

    Returns:
        The axes of the output.
    """
    del call
    return tuple((Factor(n),) for n in out.shape)


def view(call: Call, out: Tensor) -> Axes:
    """A reshape in row-major order.

    Args:
        call: The operation.
        out: Its output.

    Returns:
        The axes of the output.
    """
    return reshape(call.of(call.tensors()[0]), out.shape, call.where)


def permute(call: Call, out: Tensor) -> Axes:
    """Axes change places.

    Args:
        call: The operation.
        out: Its output.

    Returns:
        The axes of the output.
    """
    axes = call.axes("self")
    return tuple(axes[d] for d in call.given["dims"]) if out.dim() else ()


def transpose(call: Call, out: Tensor) -> Axes:
    """Two axes change places.

    Args:
        call: The operation.
        out: Its output.

    Returns:
        The axes of the output.
    """
    del out
    axes = list(call.axes("self"))
    if len(axes) > 1:
        a, b = (call.given["dim0"], call.given["dim1"]) if call.name == "transpose" else (0, 1)
        axes[a], axes[b] = axes[b], axes[a]
    return tuple(axes)


def expand(call: Call, out: Tensor) -> Axes:
    """Copies of one entry are alike, in any order.

    Args:
        call: The operation.
        out: Its output.

    Returns:
        The axes of the output.
    """
    axes = call.axes("self")
    old, lead = call.given["self"].shape, out.dim() - len(axes)
    kept = [axes[i - lead] if i >= lead and old[i - lead] == n else (Factor(n),) for i, n in enumerate(out.shape)]
    return tuple(kept)


def select(call: Call, out: Tensor) -> Axes:
    """One entry is picked: the order along that axis matters.

    Args:
        call: The operation.
        out: Its output.

    Returns:
        The axes of the output.
    """
    del out
    axes = list(call.axes("self"))
    call.fix(axes.pop(call.given["dim"]))
    return tuple(axes)


def _part(call: Call, axis: Axis, size: int, start: int, length: int) -> Axis:
    """The axis of `length` units from `start`: equal parts of a product share their inner factor."""
    if length == size:
        return axis
    if length > 0 and size % length == 0 and start % length == 0:
        inner = reshape((axis,), (size // length, length), call.where)
        call.fix(inner[0])
        return inner[1]
    call.fix(axis)
    return fixed(length, call.where)


def slice_(call: Call, out: Tensor) -> Axes:
    """A range of an axis: one of its equal parts, or its order matters.

    Args:
        call: The operation.
        out: Its output.

    Returns:
        The axes of the output.
    """
    axes, dim = list(call.axes("self")), call.given.get("dim", 0)
    size = call.given["self"].shape[dim]
    start = call.given.get("start") or 0
    start = max(0, start + size if start < 0 else min(start, size))
    if call.given.get("step", 1) != 1:
        call.fix(axes[dim])
        axes[dim] = fixed(out.shape[dim], call.where)
    else:
        axes[dim] = _part(call, axes[dim], size, start, out.shape[dim])
    return tuple(axes)


def split(call: Call, out: Sequence[Tensor]) -> list[Axes]:
    """Ranges of an axis, laid end to end.

    Args:
        call: The operation.
        out: Its output.

    Returns:
        Axes of each output.
    """
    axes, dim, start = call.axes("self"), call.given.get("dim", 0), 0
    dim %= len(axes)
    size, found = call.given["self"].shape[dim], list[Axes]()
    for part in out:
        length = part.shape[dim]
        found.append((*axes[:dim], _part(call, axes[dim], size, start, length), *axes[dim + 1 :]))
        start += length
    return found


def unbind(call: Call, out: Sequence[Tensor]) -> list[Axes]:
    """Every entry of an axis on its own: its order matters.

    Args:
        call: The operation.
        out: Its output.

    Returns:
        Axes of each output.
    """
    axes, dim = list(call.axes("self")), call.given.get("dim", 0)
    call.fix(axes.pop(dim))
    return [tuple(axes)] * len(out)


def cat(call: Call, out: Tensor) -> Axes:
    """Axes that are laid end to end are fixed; the others move together.

    Args:
        call: The operation.
        out: Its output.

    Returns:
        The axes of the output.
    """
    parts, dim = [t for t in call.tensors() if t.dim() == out.dim()], call.given.get("dim", 0) % out.dim()
    found: list[Axis] = [(Factor(n),) for n in out.shape]
    for part in parts:
        for i, axis in enumerate(call.of(part)):
            if i != dim:
                call.merge(found[i], axis)
            else:
                call.fix(axis)
    if len(parts) > 1:
        call.fix(found[dim])
    return tuple(found)


def stack(call: Call, out: Tensor) -> Axes:
    """Tensors in a row along a new axis, whose order matters.

    Args:
        call: The operation.
        out: Its output.

    Returns:
        The axes of the output.
    """
    dim = call.given.get("dim", 0) % out.dim()
    found: list[Axis] = [(Factor(n),) for i, n in enumerate(out.shape) if i != dim]
    for part in call.tensors():
        for one, two in zip(found, call.of(part), strict=True):
            call.merge(one, two)
    found.insert(dim, fixed(out.shape[dim], call.where))
    return tuple(found)


def pad(call: Call, out: Tensor) -> Axes:
    """Entries are added at the ends of axes, whose order matters.

    Args:
        call: The operation.
        out: Its output.

    Returns:
        The axes of the output.
    """
    axes, padded = list(call.axes("self")), len(call.given["pad"]) // 2
    for i in range(len(axes) - padded, len(axes)):
        call.fix(axes[i])
        axes[i] = fixed(out.shape[i], call.where)
    return tuple(axes)


def index_select(call: Call, out: Tensor) -> Axes:
    """Entries of an axis are picked by number: its order matters.

    Args:
        call: The operation.
        out: Its output.

    Returns:
        The axes of the output.
    """
    axes, dim = list(call.axes("self")), call.given["dim"]
    call.fix(axes[dim])
    axes[dim] = fixed(out.shape[dim], call.where)
    return tuple(axes)


def index(call: Call, out: Tensor) -> Axes:
    """Advanced indexing: the indexed axes matter; the others keep their order where the result says which they are.

    Args:
        call: The operation.
        out: Its output.

    Returns:
        The axes of the output.
    """
    axes, indices = call.axes("self"), call.given["indices"]
    hit = [i for i, index in enumerate(indices) if index is not None]
    call.fix(*(axes[i] for i in hit))
    if hit != list(range(hit[0], hit[-1] + 1)) or any(indices[i].dtype == torch.bool for i in hit):
        call.fix(*axes)
        return call.fresh(out.shape)
    width = out.dim() - (len(axes) - len(hit))
    return (*axes[: hit[0]], *call.fresh(out.shape[hit[0] : hit[0] + width]), *axes[hit[-1] + 1 :])
