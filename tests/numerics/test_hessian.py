"""Hessian products of every mode against dense float64 matrices, closed forms, and the defects of peers."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput
from dynaxx.numerics.gauss_newton import GaussNewton
from dynaxx.numerics.hessian import Hessian

EXACT = ("double_backward", "linearize")
MODES = (*EXACT, "finite_difference")


def close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def truth(objective):
    """The Hessian row by row, by torch.autograd.functional on an explicit sum over the batches."""
    wide = objective

    def total(*tensors):
        with wide.at(tensors):
            return sum(wide.loss(i) for i in range(len(wide.batches)))

    with wide.prepared(second_order=True):
        blocks = torch.autograd.functional.hessian(total, tuple(p.detach() for p in wide.parameters))
    sizes = [p.numel() for p in wide.parameters]
    return torch.cat(
        [torch.cat([b.reshape(n, m) for b, m in zip(row, sizes, strict=True)], 1)
         for row, n in zip(blocks, sizes, strict=True)]
    )  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(5, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.out(self.lstm(x[:, None].expand(-1, 3, -1) / 2)[0][:, -1])


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.qkv = nn.Embedding(6, 4), nn.Linear(4, 12)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        h = self.embed((x.abs() * 2).long().clamp(max=5))
        q, k, v = self.qkv(h).unflatten(2, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        h = h + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.out(h).mean(1)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.LayerNorm(6)), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(checkpoint(self.body, x, use_reentrant=False))


MODELS = {
    "layer_norm": lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)),
    "batch_norm": lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)),
    "dropout": lambda: nn.Sequential(
        nn.Linear(5, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 3)
    ),
    "gelu": lambda: nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3)),
    "lstm": Recurrent,
    "attention_embedding_tied": Attentive,
    "checkpointed": Checkpointed,
}


def build(name):
    torch.manual_seed(0)
    return MODELS[name]().double()


def batches(sizes=(10, 3)):
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 5, generator=g, dtype=torch.float64), torch.randint(0, 3, (n,), generator=g)) for n in sizes
    ]


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def product(objective, mode="double_backward", **options):
    operator = Hessian(objective, mode=mode, **options)
    return operator(operator.space.random(2, seed=0))


@pytest.mark.parametrize("sizes", [(13,), (10, 3)])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", list(MODELS))
def test_every_mode_equals_the_dense_matrix(name, training, sizes):
    objective = Objective(build(name), cross_entropy, batches(sizes), mode="training" if training else "evaluation")
    dense = truth(objective)
    for mode in MODES:
        if mode == "linearize" and name in ("checkpointed", "lstm", "attention_embedding_tied"):
            continue  # torch.func passes neither checkpoints nor every operation; the next test looks at what it says
        operator = Hessian(objective, mode=mode, check=False)
        rows = operator.space.random(2, seed=0)
        close(operator(rows), rows @ dense, 1e-9 if mode in EXACT else 1e-5)


def test_the_batched_backward_equals_row_by_row():
    objective = Objective(build("layer_norm"), cross_entropy, batches())
    close(product(objective, batched=True), product(objective, batched=False), 1e-12)


def test_the_attention_kernel_is_chosen_inside_alone():
    flags = (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled())
    product(Objective(build("attention_embedding_tied"), cross_entropy, batches()))
    assert (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()) == flags
    assert all(flags)


def test_ragged_batches_weigh_by_example():
    """Equal weights, as hessian-eigenthings gives, are far off on the same split."""
    (x, y) = batches((128,))[0]
    y[100:] = 0
    x[100:] *= 3
    model = build("gelu")
    parts = [(x[:100], y[:100]), (x[100:], y[100:])]
    whole = product(Objective(model, cross_entropy, [(x, y)]))
    close(product(Objective(model, cross_entropy, parts)), whole, 1e-12)
    equal = product(Objective(model, cross_entropy, parts, weight=lambda batch: 1.0))
    assert (equal - whole).norm() > 0.2 * whole.norm()
    for many in (2, 16):  # a sum of batch means, as Goldstein's, would grow with their number
        close(
            product(Objective(model, cross_entropy, list(zip(x.chunk(many), y.chunk(many), strict=True)))), whole, 1e-12
        )
    close(product(Objective(model, cross_entropy, parts, microbatch=9)), whole, 1e-12)


def test_frozen_parameters_and_subsets_are_blocks_of_the_whole():
    model = build("layer_norm")
    whole = Hessian(Objective(model, cross_entropy, batches()))
    where, dense = whole.space.slices()["3.weight"], whole.dense()
    part = Objective(model, cross_entropy, batches()).restricted(["3.weight"])
    close(Hessian(part).dense(), dense[where, where], 1e-12)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "3.weight")
    close(Hessian(Objective(model, cross_entropy, batches())).dense(), dense[where, where], 1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_of_the_model_changes(mode):
    model = build("batch_norm")
    model.append(nn.Dropout(0.2))
    model[1].eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    calls = []

    def breaks(m, batch):
        value = cross_entropy(m, batch)
        calls.append(1)
        if len(calls) > 2:
            raise ZeroDivisionError
        return value

    product(Objective(model, cross_entropy, batches(), mode="training"), mode)
    with pytest.raises(ZeroDivisionError):
        product(Objective(model, breaks, batches((4, 4, 4)), mode="training"), mode, check=False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


def test_closed_forms_of_linear_models():
    """references §7.1.1: linear, logistic and softmax regression; there the Gauss–Newton matrix is the Hessian."""
    torch.manual_seed(0)
    x, n = torch.randn(40, 4, dtype=torch.float64), 40
    line = nn.Linear(4, 1, bias=False).double()
    target, label = torch.randn(n, 1).double(), torch.randint(0, 2, (n, 1)).double()
    sigmoid = line(x).sigmoid()
    soft = nn.Linear(4, 3, bias=False).double()
    p, classes = soft(x).softmax(1), torch.randint(0, 3, (n,))
    middle = torch.einsum("nab,ni,nj->aibj", torch.diag_embed(p) - p[:, :, None] * p[:, None], x, x).reshape(12, 12)
    for model, function, y, expected in (
        (line, F.mse_loss, target, 2 / n * x.T @ x),
        (line, F.binary_cross_entropy_with_logits, label, x.T @ (sigmoid * (1 - sigmoid) * x) / n),
        (soft, F.cross_entropy, classes, middle / n),
    ):
        objective = Objective(model, lambda m, b, f=function: f(m(b[0]), b[1]), [(x, y)])
        if function is not F.cross_entropy:
            with pytest.raises(BadInput, match="cannot trace"):
                Hessian(objective, mode="linearize")
        for mode in EXACT if function is F.cross_entropy else EXACT[:1]:
            close(Hessian(objective, mode=mode).dense(), expected.detach(), 1e-8)
        close(GaussNewton(objective).dense(), expected.detach(), 1e-8)


def test_the_uv_model():
    """f = uᵀv x/√n: at f = 0 the loss ½f² has λ = (|u|² + |v|²)/n, and elsewhere the cross block f/√n."""
    n = 8

    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.u, self.v = (nn.Parameter(torch.randn(n, dtype=torch.float64)) for _ in range(2))

        def forward(self, x):
            return (self.u @ self.v) * x / n**0.5

    torch.manual_seed(0)
    model = Product()
    dense = Hessian(
        Objective(model, lambda m, x: m(x).square().mean() / 2, [torch.ones(1, dtype=torch.float64)])
    ).dense()
    u, v = model.u.detach(), model.v.detach()
    f = u @ v / n**0.5
    eye = torch.eye(n, dtype=torch.float64) * f / n**0.5
    close(dense, torch.cat([torch.cat([v, u])[:, None] @ torch.cat([v, u])[None] / n]) + torch.cat(
        [torch.cat([0 * eye, eye], 1), torch.cat([eye, 0 * eye], 1)]
    ), 1e-12)  # fmt: skip
    with torch.no_grad():
        model.v -= model.u * (u @ v) / (u @ u)
    dense = Hessian(
        Objective(model, lambda m, x: m(x).square().mean() / 2, [torch.ones(1, dtype=torch.float64)])
    ).dense()
    top = float(torch.linalg.eigvalsh(dense)[-1])
    assert top == pytest.approx(float((model.u.square().sum() + model.v.square().sum()).detach()) / n, rel=1e-12)


def test_differences_take_a_step_of_the_weights_length():
    """Signs have norm √n: a step that is not scaled by it, as in hessian-eigenthings, is off by 5e-3 in float32."""
    model = nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 3))
    data = [(x.float(), y) for x, y in batches((64,))]
    operator = Hessian(Objective(model, cross_entropy, data), mode="finite_difference")
    exact = Hessian(Objective(model, cross_entropy, data), mode="double_backward")
    rows = operator.space.random(2, seed=0, kind="rademacher")
    unit = rows / operator.space.norms(rows)[:, None]
    error = (operator(rows) - exact(rows)).norm() / exact(rows).norm()
    assert error < 1e-3
    close(operator(1e4 * unit) / 1e4, operator(unit), 1e-3)
    one = Hessian(Objective(model, cross_entropy, data), mode="one_sided")
    assert 0 < (one(rows) - exact(rows)).norm() < 1e-2 * exact(rows).norm()


def test_the_point_is_the_weights_and_the_loss_is_the_loss():
    """HessFormer takes the Hessian of mean(logits) at θ = v: linear in v it would not be."""
    objective = Objective(build("gelu"), cross_entropy, batches())
    operator = Hessian(objective)
    row = operator.space.random(1, seed=0)
    close(operator(7 * row), 7 * operator(row), 1e-12)
    other = Hessian(Objective(objective.model, lambda m, b: m(b[0]).mean(), batches()))
    assert (operator(row) - other(row)).norm() > 0.1 * operator(row).norm()
    before = operator(row)
    with torch.no_grad():
        objective.parameters[0].mul_(2)
    close(operator(row), row @ truth(objective))
    assert (operator(row) - before).norm() > 1e-3 * before.norm()


def test_no_curvature_is_zero_and_not_an_error():
    model = build("gelu")
    for loss in (
        lambda m, b: m[2].bias.sum(),  # linear
        lambda m, b: 0.0 * m(b[0]).sum(),
        lambda m, b: b[0].mean(),  # constant in the parameters
    ):
        rows = product(Objective(model, loss, batches()), check=False)
        assert float(rows.abs().max()) == 0.0
    operator = Hessian(Objective(model, cross_entropy, batches()))
    assert float(operator(torch.zeros(2, operator.space.n, dtype=torch.float64)).abs().max()) == 0.0


def test_bad_rows_and_modes_are_refused():
    objective = Objective(build("gelu"), cross_entropy, batches())
    with pytest.raises(BadInput, match=re.escape("shape (k, ")):
        Hessian(objective)(torch.zeros(2, 3, dtype=torch.float64))
    half = nn.Linear(5, 3).bfloat16()
    with pytest.raises(BadInput, match="half precision"):
        Hessian(Objective(half, cross_entropy, batches()), mode="finite_difference")


def test_memory_does_not_grow_with_the_number_of_microbatches():
    """Bytes that autograd holds for backward at once: the graph of one microbatch, whatever their number."""
    model = nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3)).double()

    def peak(count, microbatch):
        held = {"now": 0, "peak": 0}

        class Held:
            def __init__(self, tensor):
                self.tensor, self.size = tensor.detach(), tensor.nbytes  # an output would hold its own graph
                held["now"] += self.size
                held["peak"] = max(held["peak"], held["now"])

            def __del__(self):
                held["now"] -= self.size

        (x, y) = batches((32 * count,))[0]
        operator = Hessian(
            Objective(model, cross_entropy, [(x, y)], microbatch=microbatch), mode="double_backward", check=False
        )
        rows = operator.space.random(1, seed=0)
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda kept: kept.tensor):
            operator(rows)
        return held["peak"]

    assert peak(8, 32) <= 1.05 * peak(2, 32)
    assert peak(8, None) > 2 * peak(8, 32)


@pytest.mark.parametrize("microbatch", [None, 5])
def test_a_graph_that_is_not_kept_gives_the_same_and_is_freed(microbatch):
    """Bytes that autograd still holds behind a product: none; and rows share one graph all the same."""
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    objective = Objective(model, cross_entropy, batches((13,)), microbatch=microbatch)
    held: set[int] = set()

    class Held:
        def __init__(self, tensor):
            self.tensor = tensor.detach()
            held.add(id(self))

        def __del__(self):
            held.discard(id(self))

    operator = Hessian(objective, mode="double_backward", check=False, batched=False, keep_graph=False)
    rows = operator.space.random(3, seed=0)
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda kept: kept.tensor):
        found = operator(rows)
    assert not held
    assert operator.builds == len(objective.batches)
    assert torch.allclose(found, Hessian(objective, check=False)(rows), rtol=1e-12, atol=1e-14)
