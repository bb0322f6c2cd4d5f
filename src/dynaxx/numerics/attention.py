"""Statistics of attention weights, computed anew from what went into an attention call, on a sample of its queries."""

import inspect
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

SAMPLE = 1 << 21
"""At most so many logits are computed anew for one call (8 MB): first fewer examples, then every k-th query."""

_MODULE = inspect.signature(functional.multi_head_attention_forward)


def statistics(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """Largest logit and mean entropy of softmax(scale·QKᵀ + mask), on at most about `SAMPLE` logits.

    Takes what `torch.nn.functional.scaled_dot_product_attention` takes.

    Args:
        query: Shape (..., heads, queries, width), or (batch, queries, width).
        key: Shape (..., heads, keys, width), or (batch, keys, width).
        value: Not needed.
        attn_mask: True to attend, or a number to add; broadcast to (..., heads, queries, keys).
        dropout_p: Not needed: dropout acts on the weights.
        is_causal: Query i sees keys up to i.
        scale: Factor of the logits; None: 1/√width.
        enable_gqa: Fewer key heads than query heads, each shared by consecutive query heads.

    Returns:
        Two scalars in float32: the largest logit that is not masked out, and the mean over queries of −Σ p ln p, in
        nats, without queries that see no key.

    Example:
        >>> q = torch.zeros(1, 1, 2, 4)
        >>> logit, entropy = statistics(q, torch.zeros(1, 1, 2, 4), q)
        >>> float(logit), round(float(entropy), 4)
        (0.0, 0.6931)
    """
    del value, dropout_p
    q, k, mask = query.detach(), key.detach(), attn_mask
    queries, keys = q.shape[-2], k.shape[-2]
    each = keys * q.shape[1:-2].numel()  # logits of one query position of one example
    examples = max(1, SAMPLE // max(1, each * queries)) if q.dim() > 2 else 1
    stride = max(1, math.ceil(queries / max(1, SAMPLE // max(1, each))))
    q, k, mask = (_first(t, examples, q.dim()) for t in (q, k, mask))
    assert q is not None
    assert k is not None
    if enable_gqa and q.shape[-3] != k.shape[-3]:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)
    chosen = torch.arange(queries - 1, -1, -stride, device=q.device)  # the last query sees most keys: keep it
    with torch.autocast(q.device.type, enabled=False):  # which would round the logits to 16 bits
        logits = (q[..., chosen, :].float() @ k.float().mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        mask = mask.detach()[..., chosen, :] if mask.shape[-2] > 1 else mask.detach()
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.float()
    if is_causal:
        logits = logits.masked_fill(torch.arange(keys, device=q.device) > chosen[:, None], -torch.inf)
    weights = torch.softmax(logits, dim=-1)
    return logits.amax(), torch.special.entr(weights).sum(-1).nanmean()


def module_statistics(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor] | None:
    """The same of a call of `torch.nn.functional.multi_head_attention_forward`, through which MultiheadAttention goes.

    Args:
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        As `statistics`; None for calls with further keys (`bias_k`, `add_zero_attn`, `static_k`).
    """
    bound = _MODULE.bind(*args, **kwargs)
    bound.apply_defaults()
    call: dict[str, Any] = bound.arguments
    if call["bias_k"] is not None or call["add_zero_attn"] or call["static_k"] is not None:
        return None
    query, key, padding = call["query"], call["key"], call["key_padding_mask"]
    if query.dim() == 2:
        query, key, padding = query[:, None], key[:, None], None if padding is None else padding[None]
    heads, batch = call["num_heads"], query.shape[1]
    some = max(1, SAMPLE // (heads * len(query) * len(key)))  # examples whose queries and keys are projected anew
    weights = (call["q_proj_weight"], call["k_proj_weight"])
    if not call["use_separate_proj_weight"]:
        weights = call["in_proj_weight"].chunk(3)[:2]
    biases = (None, None) if call["in_proj_bias"] is None else call["in_proj_bias"].chunk(3)[:2]
    with torch.autocast(query.device.type, enabled=False):
        q, k = (
            functional.linear(x[:, :some].float(), w.float(), None if b is None else b.float())
            .unflatten(-1, (heads, -1))
            .permute(1, 2, 0, 3)
            for x, w, b in zip((query, key), weights, biases, strict=True)
        )
    mask = None if call["attn_mask"] is None else _addend(call["attn_mask"])
    if mask is not None and mask.dim() == 3:
        mask = mask.unflatten(0, (batch, heads))[:some]
    if padding is not None:
        hidden = _addend(padding[:some, None, None])
        mask = hidden if mask is None else mask + hidden
    return statistics(q, k, k, mask)


def _first(tensor: Tensor | None, examples: int, dimensions: int) -> Tensor | None:
    """The first examples of a tensor that has a batch dimension of its own, not one to be broadcast."""
    if tensor is None or tensor.dim() < dimensions or dimensions < 3 or tensor.shape[0] == 1:
        return tensor
    return tensor[:examples]


def _addend(mask: Tensor) -> Tensor:
    """A mask of MultiheadAttention, True to leave out, as a number to add."""
    if mask.dtype != torch.bool:
        return mask.detach().float()
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(mask, -torch.inf)
