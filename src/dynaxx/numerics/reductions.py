"""Reductions of parameter-sized tensors to one value per layer: fused, on the device, over all shards.

Nothing here waits for the device. Where parameters are sharded (FSDP2, tensor parallelism) every function is a
collective: all ranks must call it, in the same order.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dynaxx.core.events import StepView
from dynaxx.core.parameters import Layout, flat_real, is_sharded, widest

_foreach_norm = cast(Any, torch._foreach_norm)  # pyright: ignore[reportPrivateUsage]

CHUNK = 1 << 20
"""Entries handled at a time where a temporary is unavoidable: 4 MB in float32, whatever the size of the model."""


def layer_norms(
    tensors: Sequence[Tensor | None], layout: Layout, factor: Tensor | None = None
) -> Float[Tensor, " layers"]:
    """L2 norm of each layer, √(Σ over its parameters of ‖t‖²), of the whole tensors though each rank holds a shard.

    Args:
        tensors: One per parameter, in the order of the layout; None counts as zero.
        layout: Parameters by layer.
        factor: Scalar by which every tensor is to be taken multiplied.

    Returns:
        Norms in float32 (float64 where the tensors are), in the unit of the tensors.

    Example:
        >>> layout = Layout(torch.nn.Linear(2, 1))
        >>> layer_norms([torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])], layout)
        tensor([5.])
    """
    squares = _combine(tensor_norms(tensors, layout).square(), layout, "sum")
    total = _by_layer(squares, layout).sqrt()
    return total if factor is None else total * factor.to(total)


def tensor_norms(tensors: Sequence[Tensor | None], layout: Layout) -> Float[Tensor, " parameters"]:
    """L2 norm of each tensor as this rank holds it: two operations, for what is done at every step.

    Args:
        tensors: One per parameter, in the order of the layout; None counts as zero.
        layout: Parameters by layer.

    Returns:
        Norms in float32 (float64 where the tensors are).
    """
    present = [i for i, t in enumerate(tensors) if t is not None]
    return _place(_vector(_present_norms(tensors, layout), layout.device), present, layout)


def layer_maxima(
    tensors: Sequence[Tensor | None], layout: Layout, factor: Tensor | None = None
) -> Float[Tensor, " layers"]:
    """Largest magnitude in each layer, max |t|, over all shards; of a complex number, that of its larger part.

    Args:
        tensors: One per parameter; None and empty shards count as zero.
        layout: Parameters by layer.
        factor: Scalar by which every tensor is to be taken multiplied.

    Returns:
        Maxima in the unit of the tensors.
    """
    held = {i: _dense(t) for i, t in enumerate(tensors) if t is not None}
    present = [i for i, t in held.items() if t.numel() > 0]  # an empty shard, or a sparse gradient without entries
    norms = _vector(_norms([held[i] for i in present], float("inf")), layout.device)
    values = _combine(_place(norms, present, layout), layout, "max")
    rows = torch.zeros(len(layout.layers), dtype=values.dtype, device=values.device)
    # amax hands on NaN, as it must: a NaN gradient has no largest entry.
    rows = rows.scatter_reduce(0, layout.index(values.device), values, reduce="amax")
    return rows if factor is None else rows * factor.to(rows).abs()


def layer_sums(values: Sequence[Tensor | float], layout: Layout) -> Float[Tensor, " layers"]:
    """Sum over each layer's parameters of one number per parameter, over all shards.

    Args:
        values: One scalar per parameter, this rank's shard's.
        layout: Parameters by layer.

    Returns:
        Sums in float64 where the device has it, so that counts up to 2⁵³ are exact, else float32.
    """
    device, dtype = layout.device, widest(layout.device)
    # All numbers of the host go over in one copy, which does not wait for the device.
    numbers = torch.tensor([v for v in values if not isinstance(v, Tensor)], dtype=dtype).to(device, non_blocking=True)
    rest = iter(numbers.unbind())
    scalars = [v.to(device, dtype, non_blocking=True) if isinstance(v, Tensor) else next(rest) for v in values]
    return _by_layer(_combine(torch.stack(scalars), layout, "sum"), layout)


def layer_shares(counts: Sequence[Tensor | float], layout: Layout) -> Float[Tensor, " layers"]:
    """Counts per parameter as shares of the layers' numbers of entries (a complex number is two entries).

    Args:
        counts: One count per parameter, of this rank's shard.
        layout: Parameters by layer.

    Returns:
        Shares in [0, 1], one per layer.
    """
    total = layer_sums(counts, layout)

    def sizes() -> Tensor:
        whole = [0.0] * len(layout.layers)
        for row, p in zip(layout.layer_of, layout.parameters, strict=True):
            whole[row] += entries(p)
        return torch.tensor(whole, dtype=total.dtype, device=total.device)

    return total / layout.memo("entries", sizes)


def count(tensor: Tensor | None, what: str, threshold: Tensor | float = 0.0) -> Tensor | float:
    """How many entries of a tensor have a property, with temporaries of at most `CHUNK` entries.

    Args:
        tensor: Any floating tensor, or None (no entries).
        what: "zero"; "nonfinite" (NaN or infinite); "below" (0 < |x| < threshold); "under" (x < threshold).
        threshold: For the last two; positive for "below".

    Returns:
        A scalar int64 tensor, or 0.0 for None.

    Example:
        >>> count(torch.tensor([0.0, 1e-9, float("nan")]), "below", 1e-6)
        tensor(1)
    """
    if tensor is None:
        return 0.0
    flat = flat_real(tensor)
    if what == "zero":
        return entries(tensor) - torch.count_nonzero(flat)  # a sparse tensor's absent entries are zeros
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for part in flat.split(CHUNK):
        if part.dtype in (torch.float16, torch.bfloat16):
            part = part.float()  # so that the threshold is not rounded to 16 bits
        if what == "nonfinite":
            total += part.numel() - torch.count_nonzero(part.isfinite())
        elif what == "under":
            total += torch.count_nonzero(part < threshold)
        else:
            # Half the time of a mask and its count on CPU; a sum of up to 2²⁰ ones is exact in float32.
            small = part.abs().lt_(threshold).sum().to(torch.int64)
            total += (small - (part.numel() - torch.count_nonzero(part))).clamp_min_(0)
    return total


def entries(tensor: Tensor) -> int:
    """How many real entries a tensor has, stored or not: a complex number is two.

    Args:
        tensor: Any tensor.

    Returns:
        The number.
    """
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def gradient_norms(step: StepView) -> Float[Tensor, " layers"]:
    """L2 norm of each layer's unscaled gradient at this point of the step; computed once a step.

    Args:
        step: The step.

    Returns:
        Norms in units of loss per parameter.
    """
    return step.memo("gradient_norms", lambda: layer_norms(step.gradients, step.layout, step.gradient_factor))


def accumulated_square(step: StepView) -> Tensor:
    """‖Σ dᵢ‖² of the parts dᵢ that the step's microbatches have added up to.

    The first call of a step decides: a step that computes its gradient once more elsewhere asks before.

    Args:
        step: The step.

    Returns:
        A scalar in float32.
    """

    def compute() -> Tensor:
        norms = [torch.linalg.vector_norm(g).float() for g in step.gradients if g is not None]
        return torch.stack(norms).square().sum()

    return step.memo("accumulated_square", compute)


def gradient_tensor_norms(step: StepView) -> Float[Tensor, " parameters"] | list[float]:
    """L2 norm of each parameter's unscaled gradient as this rank holds it; computed once a step.

    Args:
        step: The step.

    Returns:
        Norms in units of loss per parameter; on the CPU as numbers, which cost less there than one tensor of them.
    """

    def compute() -> Tensor | list[float]:
        gradients, factor = step.gradients, step.gradient_factor
        if step.layout.device.type != "cpu":
            norms = tensor_norms(gradients, step.layout)
            return norms if factor is None else norms * factor.to(norms)
        numbers = [norm.item() for norm in _present_norms(gradients, step.layout)]
        if factor is not None:
            scale = factor.item()
            numbers = [scale * number for number in numbers]
        if len(numbers) == len(gradients):
            return numbers
        present = iter(numbers)
        return [0.0 if g is None else next(present) for g in gradients]

    return step.memo("gradient_tensor_norms", compute)


def parameter_norms(step: StepView) -> Float[Tensor, " layers"]:
    """L2 norm of each layer's parameters after the update; computed once a step.

    Args:
        step: The step, at its end.

    Returns:
        Norms in the parameters' unit.
    """
    return step.memo("parameter_norms", lambda: layer_norms(step.parameters, step.layout))


def before_norms(step: StepView) -> Float[Tensor, " layers"]:
    """L2 norm of each layer's parameters before the update; the session computes it when it copies them.

    Args:
        step: The step, under `Need.UPDATE`.

    Returns:
        Norms in the parameters' unit.
    """
    return step.memo("before_norms", lambda: layer_norms(step.undo, step.layout))


def update_norms(step: StepView) -> Float[Tensor, " layers"]:
    """L2 norm of what the optimizer really changed in each layer; computed once a step.

    Args:
        step: The step, at its end, under `Need.UPDATE`.

    Returns:
        Norms in the parameters' unit.
    """
    return step.memo("update_norms", lambda: layer_norms(step.undo, step.layout))


def _dense(tensor: Tensor) -> Tensor:
    return flat_real(tensor) if tensor.is_sparse or tensor.is_complex() else tensor


def _present_norms(tensors: Sequence[Tensor | None], layout: Layout) -> Sequence[Tensor]:
    """L2 norm of each tensor that is not None, a scalar on that tensor's device."""
    present = [t for t in tensors if t is not None]
    if layout.plain:
        try:
            return _foreach_norm(present) if present and layout.wide else _norms(present, 2.0)
        except NotImplementedError:  # a gradient is sparse though no module says so
            layout.plain = False
    return _norms([_dense(t) for t in present], 2.0)


def _norms(tensors: Sequence[Tensor], order: float) -> Sequence[Tensor]:
    if not tensors:
        return []
    dtypes = {t.dtype for t in tensors}
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    return _foreach_norm(tensors, order, dtype=None if dtypes == {dtype} else dtype)


def _vector(norms: Sequence[Tensor], device: torch.device) -> Tensor:
    here = [n if n.device == device else n.to(device, non_blocking=True) for n in norms]
    return torch.stack(here) if here else torch.zeros(0, device=device)


def _place(values: Tensor, present: list[int], layout: Layout) -> Tensor:
    if len(present) == len(layout.parameters):
        return values
    vector = torch.zeros(len(layout.parameters), dtype=values.dtype, device=values.device)
    where = layout.memo(
        ("present", tuple(present)), lambda: torch.tensor(present, dtype=torch.int64, device=values.device)
    )
    return vector.index_copy_(0, where, values)


def _by_layer(values: Float[Tensor, " parameters"], layout: Layout) -> Float[Tensor, " layers"]:
    index: Int[Tensor, " parameters"] = layout.index(values.device)
    return torch.zeros(len(layout.layers), dtype=values.dtype, device=values.device).index_add_(0, index, values)


def _combine(values: Float[Tensor, " parameters"], layout: Layout, how: str) -> Float[Tensor, " parameters"]:
    """Add up (or take the largest of) the shards' values; a copy held by r ranks counts 1/r each in a sum."""
    if not layout.sharded:
        return values
    import torch.distributed as dist  # deferred: an unsharded run never needs it

    mesh = layout.mesh
    assert mesh is not None
    values = values.to(widest(values.device))  # alike on all ranks: one that holds no shard knows no dtype
    if how == "sum":
        values = values * torch.tensor(copies(layout), dtype=values.dtype, device=values.device).reciprocal()
        for dimension in range(mesh.ndim):
            dist.all_reduce(values, group=mesh.get_group(dimension))
        return values
    lost = values.isnan()  # the largest of NaN and a number is either, by the order in which ranks meet
    both = torch.stack([values.masked_fill(lost, 0.0), lost.to(values.dtype)])
    for dimension in range(mesh.ndim):
        dist.all_reduce(both, op=dist.ReduceOp.MAX, group=mesh.get_group(dimension))
    return both[0].masked_fill(both[1] > 0, torch.nan)


def copies(layout: Layout) -> tuple[int, ...]:
    """On how many ranks of the mesh each entry of a parameter lies: 1 where it is sharded over every dimension.

    Args:
        layout: A sharded layout.

    Returns:
        One number per parameter.
    """
    mesh = layout.mesh
    assert mesh is not None

    def held(parameter: Tensor) -> int:
        placements = cast(Any, parameter).placements if is_sharded(parameter) else [None] * mesh.ndim
        number = 1
        for dimension, placement in enumerate(placements):
            if placement is None or not placement.is_shard():
                number *= mesh.size(dimension)
        return number

    return tuple(held(p) for p in layout.parameters)
