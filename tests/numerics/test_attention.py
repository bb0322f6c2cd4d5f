import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from dynaxx.numerics import attention
from dynaxx.numerics.attention import module_statistics, statistics


def by_hand(q, k, allowed=None, added=None, scale=None):
    """Largest logit and mean entropy of dense softmax attention in float64; queries that see no key left out."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    logits = torch.einsum("...qd,...kd->...qk", q.double(), k.double()) * scale
    if added is not None:
        logits = logits + added.double()
    if allowed is not None:
        logits = torch.where(allowed, logits, torch.full_like(logits, -math.inf))
    weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
    terms = torch.where(weights > 0, -weights * weights.log(), torch.zeros_like(weights))
    sees = logits.isfinite().any(-1)
    return float(logits.max()), float(terms.sum(-1)[sees].mean())


def agrees(found, truth):
    assert [value.dtype for value in found] == [torch.float32] * 2
    assert [value.shape for value in found] == [()] * 2
    assert [float(value) for value in found] == pytest.approx(truth, rel=1e-5, abs=1e-6)


@pytest.fixture
def qk():
    torch.manual_seed(0)
    return torch.randn(2, 3, 5, 4) * 2, torch.randn(2, 3, 7, 4) * 2


TRIANGLE = torch.ones(5, 7, dtype=torch.bool).tril()


@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (5, 1), (3, 5, 7), (2, 1, 1, 7), (2, 3, 5, 7), (1, 1, 5, 7)])
@pytest.mark.parametrize("kind", ["boolean", "number"])
def test_every_mask(qk, shape, kind):
    q, k = qk
    generator = torch.Generator().manual_seed(1)
    if kind == "boolean":
        mask = torch.rand(shape, generator=generator) > 0.4
        agrees(statistics(q, k, k, mask), by_hand(q, k, allowed=mask))
    else:
        mask = torch.randn(shape, generator=generator)
        agrees(statistics(q, k, k, attn_mask=mask), by_hand(q, k, added=mask))


def test_a_query_that_sees_nothing_is_left_out(qk):
    q, k = qk
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[2] = False
    agrees(statistics(q, k, k, mask), by_hand(q, k, allowed=mask))


@pytest.mark.parametrize("scale", [None, 0.3])
def test_causal_attention_sees_keys_up_to_the_query(qk, scale):
    q, k = qk
    agrees(statistics(q, k, k, None, 0.1, True, scale), by_hand(q, k, allowed=TRIANGLE, scale=scale))
    allowed = torch.ones(7, 5, dtype=torch.bool).tril()
    agrees(statistics(k, q, q, is_causal=True), by_hand(k, q, allowed=allowed))


def test_shared_key_heads(qk):
    q = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(2))
    k = qk[1][:, :2]
    agrees(statistics(q, k, k, enable_gqa=True), by_hand(q, k.repeat_interleave(3, dim=1)))


@pytest.mark.parametrize("lead", [(), (4,), (2, 2, 3)])
def test_any_number_of_leading_dimensions(lead):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(*lead, 5, 4, generator=generator), torch.randn(*lead, 7, 4, generator=generator)
    agrees(statistics(q, k, k), by_hand(q, k))


def test_known_values():
    q = torch.zeros(1, 1, 3, 4)
    agrees(statistics(q, torch.randn(1, 1, 8, 4), q), (0.0, math.log(8)))
    one = torch.eye(4)[None, None] * 100
    agrees(statistics(one, one, one), (5000.0, 0.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_are_not_rounded_to_the_inputs_dtype(qk, dtype):
    q, k = (x.to(dtype) for x in qk)
    agrees(statistics(q, k, k), by_hand(q, k))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        agrees(statistics(q, k, k), by_hand(q, k))


@pytest.mark.parametrize(
    ("shape", "keys", "sample"),
    [
        ((6, 2, 40, 4), 50, 9000),
        ((6, 2, 40, 4), 50, 700),
        ((64, 40, 4), 50, 3000),
        ((40, 4), 50, 400),
        ((2, 3, 2, 40, 4), 50, 100),
    ],
)
@pytest.mark.parametrize("causal", [True, False])
def test_a_large_call_is_sampled(monkeypatch, shape, keys, sample, causal):
    """Bounded work, a lower bound of the logit, and near the truth; the last query is always in it."""
    monkeypatch.setattr(attention, "SAMPLE", sample)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(shape, generator=generator), torch.randn(*shape[:-2], keys, 4, generator=generator)
    mask = torch.rand(*shape[:-1], keys, generator=generator) > 0.2
    sizes = []
    real = torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda x, dim: (sizes.append(x.numel()), real(x, dim=dim))[1])
    given = {"is_causal": True} if causal else {"attn_mask": mask}
    logit, entropy = statistics(q, k, k, **given)
    allowed = torch.ones(shape[-2], keys, dtype=torch.bool).tril() if causal else mask
    full = by_hand(q, k, allowed=allowed)
    assert 0 < sizes[0] <= max(sample, keys * math.prod(shape[1:-2]))
    assert sizes[0] > min(sample, math.prod(shape[:-1]) * keys) / 4
    assert float(logit) <= full[0] + 1e-5
    if not causal:  # there, later queries have more entropy, and a small sample has the last
        assert float(entropy) == pytest.approx(full[1], rel=0.3)


def test_the_last_query_is_in_the_sample(monkeypatch):
    monkeypatch.setattr(attention, "SAMPLE", 20)
    q = torch.zeros(1, 1, 9, 4)
    q[..., -1, :] = 1
    k = torch.ones(1, 1, 10, 4)
    assert float(statistics(q, k, k)[0]) == 2.0


def test_inputs_stay_as_they_are(qk):
    q, k = (x.requires_grad_() for x in qk)
    before = q.detach().clone(), k.detach().clone()
    found = statistics(q, k, k, is_causal=True)
    assert q.equal(before[0])
    assert k.equal(before[1])
    assert not any(value.requires_grad for value in found)


class Seen:
    """What MultiheadAttention passes to its function."""

    def __init__(self, monkeypatch):
        self.calls = []
        real = functional.multi_head_attention_forward

        def spy(*args, **kwargs):
            self.calls.append((args, kwargs))
            return real(*args, **kwargs)

        monkeypatch.setattr(functional, "multi_head_attention_forward", spy)


@pytest.fixture
def seen(monkeypatch):
    return Seen(monkeypatch)


def heads_by_hand(module, query, key, heads):
    """The module's queries and keys by head, in float64, from its own parameters."""
    if module.in_proj_weight is None:
        wq, wk = module.q_proj_weight, module.k_proj_weight
    else:
        wq, wk, _ = module.in_proj_weight.chunk(3)
    bq, bk = (0, 0) if module.in_proj_bias is None else module.in_proj_bias.double().chunk(3)[:2]
    q, k = query.double() @ wq.double().T + bq, key.double() @ wk.double().T + bk
    return (x.unflatten(-1, (heads, -1)).transpose(-2, -3) for x in (q, k))


MASKS = {
    "none": {},
    "causal": {"attn_mask": ~torch.ones(5, 6).tril().bool(), "is_causal": True},
    "padding": {"key_padding_mask": torch.tensor([[False] * 6, [False] * 4 + [True] * 2, [True] * 2 + [False] * 4])},
    "number": {"attn_mask": torch.linspace(-1, 1, 30).view(5, 6)},
    "heads": {"attn_mask": torch.linspace(-1, 1, 180).view(6, 5, 6)},
}
MASKS["both"] = MASKS["number"] | {"key_padding_mask": torch.linspace(-2, 0, 18).view(3, 6)}


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 3, "vdim": 3}], ids=str)
def test_multihead_attention(seen, masks, weights, options):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=True, **options)
    nn.init.normal_(module.in_proj_bias) if module.in_proj_bias is not None else None
    query, key = torch.randn(3, 5, 8) * 3, torch.randn(3, 6, options.get("kdim", 8))
    _, returned = module(query, key, key, need_weights=weights, average_attn_weights=False, **masks)
    args, kwargs = seen.calls[0]
    found = module_statistics(*args, **kwargs)
    q, k = heads_by_hand(module, query, key, 2)
    added = torch.zeros(3, 2, 5, 6)
    for name, mask in masks.items():
        if name == "is_causal":
            continue
        mask = torch.zeros(mask.shape).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask
        mask = mask[:, None, None] if name == "key_padding_mask" else mask
        added = added + (mask.view(3, 2, 5, 6) if mask.dim() == 3 else mask)
    agrees(found, by_hand(q.detach(), k.detach(), added=added))
    if weights:  # and the module says the same of its weights
        assert float(found[1]) == pytest.approx(float(torch.special.entr(returned.detach()).sum(-1).mean()), rel=1e-4)


def test_multihead_attention_without_a_batch(seen):
    module = nn.MultiheadAttention(8, 2)
    query = torch.randn(5, 8)
    padding = torch.tensor([False, True, False, False, False])
    module(query, query, query, key_padding_mask=padding)
    q, k = heads_by_hand(module, query, query, 2)
    args, kwargs = seen.calls[0]
    agrees(module_statistics(*args, **kwargs), by_hand(q.detach(), k.detach(), allowed=~padding))


def test_multihead_attention_of_a_large_batch_projects_a_part_of_it(seen, monkeypatch):
    monkeypatch.setattr(attention, "SAMPLE", 2 * 5 * 5 * 3)
    module = nn.MultiheadAttention(8, 2, batch_first=True)
    query = torch.randn(16, 5, 8)
    mask = torch.randn(32, 5, 5)
    module(query, query, query, attn_mask=mask)
    q, k = heads_by_hand(module, query[:3], query[:3], 2)
    args, kwargs = seen.calls[0]
    found = module_statistics(*args, **kwargs)
    agrees(found, by_hand(q.detach(), k.detach(), added=mask.view(16, 2, 5, 5)[:3]))


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}], ids=str)
def test_further_keys_are_not_spoken_of(seen, options):
    module = nn.MultiheadAttention(8, 2, **options)
    x = torch.randn(5, 3, 8)
    module(x, x, x)
    args, kwargs = seen.calls[0]
    assert module_statistics(*args, **kwargs) is None
