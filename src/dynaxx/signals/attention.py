"""Attention: the largest logit and the entropy of the weights, wherever the model calls torch's fused attention."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynaxx.core.contracts import ForwardSignal, FunctionObserver, Tap
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout, is_compiled
from dynaxx.core.records import Axis, Column, Cost, Measurement
from dynaxx.errors import NotApplicable

SAMPLE = 1 << 21
"""At most so many logits are computed anew for one call (8 MB): first fewer examples, then every k-th query."""


@dataclass(slots=True)
class _State:
    sites: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict[str, list[tuple[Tensor, Tensor]]])
    columns: tuple[Column, Column] | None = None


class Attention(ForwardSignal[_State]):
    """Of softmax(QKᵀ/√d): the largest logit, and the mean entropy −Σ p ln p of a query's weights, in nats.

    Growing logits precede divergence, entropy near zero is its mark (Zhai et al. 2023, Dehghani et al. 2023). Both are
    computed anew from the arguments of `scaled_dot_product_attention` on a sample of examples and queries, so the
    largest logit is a lower bound. Not visible inside compiled graphs, nor in attention written out by hand.
    """

    at = Event.STEP_END
    cost = Cost()
    unit = "nat"

    def init(self, model: nn.Module, layout: Layout) -> _State:
        """No call seen yet."""
        del layout
        if is_compiled(model):
            raise NotApplicable("attention inside a compiled model cannot be seen; its logits are not measured.")
        return _State()

    def tap(self, state: _State, name: str, module: nn.Module) -> Tap | None:
        """No module: the function is looked at."""
        del state, name, module
        return None

    def functions(self, state: _State) -> Mapping[Callable[..., Any], FunctionObserver]:
        """The fused attention function."""

        def observe(site: str, owner: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            del owner, output
            state.sites.setdefault(site, []).append(statistics(*args, **kwargs))

        return {functional.scaled_dot_product_attention: observe}

    def measure(self, state: _State, step: StepView) -> tuple[_State, Sequence[Measurement]]:
        """Largest and mean over the calls since the last measurement."""
        del step
        seen = {site: calls for site, calls in state.sites.items() if calls}
        if not seen:
            return state, ()
        if state.columns is None or (state.columns[0].axis or Axis(name="", labels=())).labels != tuple(seen):
            state.columns = _columns(tuple(seen))
        logits = torch.stack([torch.stack([c[0] for c in calls]).amax() for calls in seen.values()])
        entropy = torch.stack([torch.stack([c[1] for c in calls]).mean() for calls in seen.values()])
        for calls in state.sites.values():
            calls.clear()
        return state, (
            Measurement(column=state.columns[0], value=logits),
            Measurement(column=state.columns[1], value=entropy),
        )


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
    """Largest logit and mean entropy of one attention call, on at most `SAMPLE` logits.

    Args:
        query: Shape (..., heads, queries, width).
        key: Shape (..., heads, keys, width).
        value: Not needed.
        attn_mask: As `scaled_dot_product_attention` takes it: True to attend, or a number to add.
        dropout_p: Not needed: dropout acts on the weights.
        is_causal: Query i sees keys up to i.
        scale: Factor of the logits; None: 1/√width.
        enable_gqa: Fewer key heads than query heads, each shared by consecutive query heads.

    Returns:
        Two scalars in float32: the largest logit that is not masked, the mean entropy in nats.

    Example:
        >>> q = torch.zeros(1, 1, 2, 4)
        >>> logit, entropy = statistics(q, torch.zeros(1, 1, 2, 4), q)
        >>> float(logit), round(float(entropy), 4)
        (0.0, 0.6931)
    """
    del value, dropout_p
    q, k = query.detach(), key.detach()
    queries, keys = q.shape[-2], k.shape[-2]
    if enable_gqa and q.shape[-3] != k.shape[-3]:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)
    heads = q.shape[-3] if q.dim() > 3 else 1
    rows = max(1, SAMPLE // (keys * heads))
    mask = None if attn_mask is None else attn_mask.detach()
    if q.dim() > 3:
        examples = max(1, rows // queries)
        q, k = q[:examples], k[:examples]
        mask = mask[:examples] if mask is not None and mask.dim() == q.dim() and mask.shape[0] > 1 else mask
        rows = max(1, rows // q.shape[:-3].numel())
    stride = max(1, math.ceil(queries / rows))
    chosen = torch.arange(queries - 1, -1, -stride, device=q.device)  # the last query sees most keys: keep it
    logits = (q[..., chosen, :].float() @ k.float().mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        mask = mask[..., chosen, :] if mask.shape[-2] > 1 else mask
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.float()
    if is_causal:
        logits = logits.masked_fill(torch.arange(keys, device=q.device) > chosen[:, None], -torch.inf)
    weights = torch.softmax(logits, dim=-1)
    return logits.amax(), torch.special.entr(weights).sum(-1).nanmean()


def _columns(labels: tuple[str, ...]) -> tuple[Column, Column]:
    axis = Axis(name="attention", labels=labels)
    return (
        Column(
            name="attention.logit_max", axis=axis, reduce="max", about="largest attention logit in a sample of queries"
        ),
        Column(name="attention.entropy", axis=axis, unit="nat", about="mean entropy of a query's attention weights"),
    )
