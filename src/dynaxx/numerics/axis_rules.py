"""What each tensor operation does to the order of its operands' axes: which move together, which must not move."""

import math
from typing import Any

from torch import Tensor

from dynaxx.numerics import axis_layout as layout
from dynaxx.numerics.axes import Axis, Factor, fixed, leaves, reshape
from dynaxx.numerics.axis_call import Axes, Call, Rule


def default(call: Call, out: Any) -> None:
    """An operation without a rule: the order of everything that it touches matters.

    Args:
        call: The operation.
        out: Its output.
    """
    del out
    for tensor in call.tensors():
        call.fix(*call.of(tensor))


def pointwise(call: Call, out: Any) -> Axes:
    """Entry by entry with broadcasting: axes that meet move together.

    Args:
        call: The operation.
        out: Its output.

    Returns:
        The axes of the output.
    """
    found: list[Axis] = [(Factor(n),) for n in out.shape]
    for tensor in call.tensors():
        axes = call.of(tensor)
        for back in range(1, min(len(axes), out.dim()) + 1):
            if tensor.shape[-back] == out.shape[-back]:
                call.merge(found[-back], axes[-back])
    return tuple(found)


def _same(call: Call, out: Any) -> Any:
    """Softmax, sorting-free statistics of the whole: as the first tensor."""
    del out
    return call.of(call.tensors()[0])


def _reduce(call: Call, out: Any) -> Any:
    """Symmetric in the entries that it runs over: their axes vanish, and may be in any order."""
    if len(call.tensors()) > 1:  # the larger of two
        return pointwise(call, out)
    axes, dims = call.of(call.tensors()[0]), call.given.get("dim")
    gone = range(len(axes)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {d % len(axes) for d in gone} if axes else set[int]()
    rest = tuple(axis for i, axis in enumerate(axes) if i not in gone)
    if call.given.get("keepdim"):
        rest = tuple(() if i in gone else axis for i, axis in enumerate(axes))
    if isinstance(out, Tensor):
        return rest
    if call.name in ("max", "min"):  # their second output is an index into the axis
        call.fix(*(axes[i] for i in gone))
    return [rest] * len(out)


def _along(call: Call, out: Any) -> Any:
    """The order along one axis matters, that along the others does not."""
    axes, dim = list(call.axes("self")), call.given.get("dim", -1)
    if axes:
        call.fix(axes[dim])
        axes[dim] = fixed(call.given["self"].shape[dim], call.where)
    return tuple(axes) if isinstance(out, Tensor) else [_sized(tuple(axes), t, call) for t in out]


def _argument(call: Call, out: Tensor) -> Axes:
    """An index into an axis; the order along it matters."""
    axes, dim = list(call.axes("self")), call.given.get("dim")
    if dim is None:
        call.fix(*axes)
        return call.fresh(out.shape)
    call.fix(axes[dim])
    if call.given.get("keepdim"):
        axes[dim] = ()
    else:
        axes.pop(dim)
    return tuple(axes)


def _sized(axes: Axes, out: Tensor, call: Call) -> Axes:
    """Axes of an output, fixed where its length is another."""
    lengths = [math.prod(leaf.size for leaf in leaves(axis)) for axis in axes]
    return tuple(a if n == m else fixed(m, call.where) for a, n, m in zip(axes, lengths, out.shape, strict=True))


def _mm(call: Call, out: Tensor) -> Axes:
    """mm, mv, dot and their adding forms: the contracted axis is summed over, in any order."""
    one, two = (call.axes(n) for n in _operands(call))
    call.merge(one[-1], two[0])
    found = one[:-1] + two[1:]
    _added(call, out, found)
    return found


def _bmm(call: Call, out: Tensor) -> Axes:
    one, two = (call.axes(n) for n in _operands(call))
    call.merge(one[0], two[0])
    call.merge(one[2], two[1])
    found = (one[0], one[1], two[2])
    _added(call, out, found)
    return found


def _operands(call: Call) -> list[str]:
    """The two factors of a product are the last of its tensors."""
    return [name for name, value in call.given.items() if isinstance(value, Tensor)][-2:]


def _added(call: Call, out: Tensor, found: Axes) -> None:
    if call.name in ("addmm", "addmv", "baddbmm"):
        for back, axis in enumerate(reversed(call.axes("self")), 1):
            if call.given["self"].shape[-back] == out.shape[-back]:
                call.merge(axis, found[-back])


def _convolution(call: Call, out: Tensor) -> Axes:
    inputs, weight, groups = call.axes("input"), call.axes("weight"), call.given["groups"]
    call.fix(*inputs[2:], *weight[2:])
    transposed = bool(call.given.get("transposed"))
    many, few = weight[0], weight[1]
    if transposed:  # (in, out / groups, …)
        call.merge(inputs[1], many)
        outer = reshape((many,), (groups, call.given["input"].shape[1] // groups), call.where)[0]
        channel = (*outer, *few)
    else:  # (out, in / groups, …)
        outer = reshape((many,), (groups, out.shape[1] // groups), call.where)[0]
        call.merge(inputs[1], (*outer, *few))
        channel = many
    bias = call.given.get("bias")
    if bias is not None:
        call.merge(channel, call.of(bias)[0])
    return (inputs[0], channel, *call.fresh(out.shape[2:]))


def _batch_norm(call: Call, out: Any) -> list[Axes | None]:
    axes = call.axes("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call.given.get(name) is not None:
            call.merge(axes[1], call.axes(name)[0])
    return [axes, *([None] * (len(out) - 1))]


def _layer_norm(call: Call, out: Any) -> Any:
    """Mean and variance do not depend on the order; gain and shift follow it."""
    axes = call.axes("input")
    for name in ("weight", "bias"):
        if call.given.get(name) is not None:
            for one, two in zip(axes[::-1], call.axes(name)[::-1], strict=False):
                call.merge(one, two)
    return axes if isinstance(out, Tensor) else [axes, *([None] * (len(out) - 1))]


def _group_norm(call: Call, out: Any) -> list[Axes | None]:
    axes, groups = call.axes("input"), call.given["group"]
    reshape((axes[1],), (groups, call.given["input"].shape[1] // groups), call.where)
    for name in ("weight", "bias"):
        if call.given.get(name) is not None:
            call.merge(axes[1], call.axes(name)[0])
    return [axes, *([None] * (len(out) - 1))]


def _spatial(call: Call, out: Any) -> Any:
    """Pooling and resampling: the last axes are positions, those before are treated alike."""
    shape = (out if isinstance(out, Tensor) else out[0]).shape
    rank = next(k for k in (1, 2, 3) if f"{k}d" in call.name)
    axes = call.axes("self")
    call.fix(*axes[len(axes) - rank :])
    found = (*axes[: len(axes) - rank], *call.fresh(shape[len(axes) - rank :]))
    return found if isinstance(out, Tensor) else [found] * len(out)


def _embedding(call: Call, out: Tensor) -> Axes:
    del out
    rows, width = call.axes("weight")
    call.fix(rows)
    return (*call.axes("indices"), width)


def _attention(call: Call, out: Any) -> list[Axes | None]:
    query, key, value = (call.axes(name) for name in ("query", "key", "value"))
    for one, two in ((query[0], key[0]), (query[1], key[1]), (query[3], key[3]), (key[0], value[0]),
                     (key[1], value[1]), (key[2], value[2])):  # fmt: skip
        call.merge(one, two)
    if call.given.get("is_causal"):
        call.fix(query[2], key[2])
    mask = call.given.get("attn_mask", call.given.get("attn_bias"))
    if mask is not None:
        call.fix(*call.of(mask), query[2], key[2])
    found: Axes = (query[0], query[1], query[2], value[3])
    return [found, *([None] * (len(out) - 1))]


def _rules() -> dict[str, Rule]:
    table: dict[Rule, str] = {
        pointwise: "_to_copy copy to detach alias lift_fresh contiguous hardswish log_sigmoid hardsigmoid threshold "
        "masked_fill fill clone",
        _same: "_softmax _log_softmax _safe_softmax softmax log_softmax",
        layout.constant: "zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full",
        layout.view: "view _unsafe_view reshape _reshape_alias unsqueeze squeeze flatten",
        layout.permute: "permute",
        layout.transpose: "t transpose numpy_T",
        layout.expand: "expand",
        layout.select: "select",
        layout.slice_: "slice",
        layout.split: "split split_with_sizes chunk",
        layout.unbind: "unbind",
        layout.cat: "cat",
        layout.stack: "stack",
        layout.pad: "constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d",
        _reduce: "sum mean amax amin var std prod any all logsumexp linalg_vector_norm norm var_mean std_mean max min",
        _along: "cumsum cumprod sort topk",
        _argument: "argmax argmin",
        _mm: "mm addmm mv addmv dot",
        _bmm: "bmm baddbmm",
        _convolution: "convolution _convolution",
        _batch_norm: "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
        "cudnn_batch_norm miopen_batch_norm _batch_norm_with_update",
        _layer_norm: "native_layer_norm _fused_rms_norm rms_norm",
        _group_norm: "native_group_norm",
        _spatial: "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d "
        "avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_max_pool2d "
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d",
        _embedding: "embedding",
        layout.index_select: "index_select",
        layout.index: "index _unsafe_index",
        _attention: "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention",
    }  # fmt: skip
    return {name: rule for rule, names in table.items() for name in names.split()}


RULES = _rules()
"""Operation → rule. One without an entry that is not tagged as pointwise fixes everything it touches."""
