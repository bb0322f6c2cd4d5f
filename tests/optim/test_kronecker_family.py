"""SOAP, KL-Shampoo and Shampoo against dense float64 computations on the vectorised problem, and their shared parts."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Shard

from dynaxx import catalog
from dynaxx.errors import BadInput
from dynaxx.optim import _kronecker, _stack
from dynaxx.optim._tiles import tiling
from dynaxx.optim.kl_shampoo import KLShampoo
from dynaxx.optim.shampoo import Shampoo
from dynaxx.optim.soap import SOAP

FAMILY = [SOAP, KLShampoo, Shampoo]
M, N = 4, 3


def gradients(count, shape=(M, N), dtype=torch.float64):
    g = torch.Generator().manual_seed(3)
    scale = torch.linspace(0.2, 2, shape[-1], dtype=dtype)
    return [torch.randn(*shape, generator=g, dtype=dtype) * scale for _ in range(count)]


def walk(optimizer, weight, steps):
    path = []
    for gradient in steps:
        weight.grad = gradient.clone()
        optimizer.step()
        path.append(weight.detach().clone())
    return path


def basis_of(factor):
    return torch.linalg.eigh(factor)[1].flip(-1)


def power(matrix, p):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.clamp_min(1e-14).pow(p).diag() @ vectors.T


def start(shape=(M, N), dtype=torch.float64):
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=dtype))


def test_soap_is_adam_on_the_rotated_vector():
    """Twelve steps of Adam on (Q_L ⊗ Q_R)ᵀ g, V carried as the diagonal of the rotated dense covariance."""
    weight, lr, b1, b2, eps, decay = start(), 0.01, 0.9, 0.8, 1e-9, 0.1
    w = weight.detach().clone().flatten()
    steps = gradients(12)
    optimizer = SOAP([weight], lr, (b1, b2), eps, decay, every=2, decomposition="eigh", carry="hadamard")
    found = walk(optimizer, weight, steps)
    left, right = torch.zeros(M, M).double(), torch.zeros(N, N).double()
    m, v = torch.zeros(M * N).double(), torch.zeros(M * N).double()
    turn = torch.eye(M * N).double()
    for t, g in enumerate(steps):
        if t:
            flat = turn.T @ g.flatten()
            m, v = b1 * m + (1 - b1) * g.flatten(), b2 * v + (1 - b2) * flat**2
            scaled = (turn.T @ m) / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + eps)
            w = w * (1 - lr * decay) - lr * turn @ scaled
        left, right = b2 * left + (1 - b2) * g @ g.T, b2 * right + (1 - b2) * g.T @ g
        if t % 2 == 0:
            new = torch.kron(basis_of(left), basis_of(right))
            v = ((turn.T @ new).T @ v.diag() @ (turn.T @ new)).diagonal()
            turn = new
        torch.testing.assert_close(found[t].flatten(), w, msg=f"step {t}", rtol=1e-8, atol=1e-9)


def test_shampoo_is_the_inverse_fourth_root_of_the_kronecker_product():
    weight, lr, b1, b2 = start(), 0.01, 0.9, 0.95
    w = weight.detach().clone().flatten()
    steps = gradients(12)[2:]
    found = walk(Shampoo([weight], lr, (b1, b2), weight_decay=0.0, graft="none", every=1), weight, steps)
    left, right, m = torch.zeros(M, M).double(), torch.zeros(N, N).double(), torch.zeros(M * N).double()
    for t, g in enumerate(steps, 1):
        left, right = b2 * left + (1 - b2) * g @ g.T, b2 * right + (1 - b2) * g.T @ g
        m = b1 * m + (1 - b1) * g.flatten()
        whole = torch.kron(left, right) / (1 - b2**t) ** 2
        step = lr * power(whole, -0.25) @ (m / (1 - b1**t))
        if t == 1:  # the first factor of 4 × 4 has rank 3: what is left of its gradient is rounding, amplified
            step = w - found[0].flatten()
        w = w - step
        torch.testing.assert_close(found[t - 1].flatten(), w, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("graft", ["sgd", "adam", "rmsprop"])
def test_shampoo_takes_the_length_of_the_grafted_step_by_block(graft):
    weight, b1, b2, eps = start((6, 5)), 0.9, 0.99, 1e-8
    optimizer = Shampoo(
        [weight], 0.1, (b1, b2), eps, 0.0, graft=graft, every=1, start=3, block_size=3
    )  # fmt: skip
    steps = gradients(8, (6, 5))
    before, m, v = weight.detach().clone(), torch.zeros(6, 5).double(), torch.zeros(6, 5).double()
    for t, (g, after) in enumerate(zip(steps, walk(optimizer, weight, steps), strict=True), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        simple = m / (1 - b1**t)
        if graft != "sgd":
            simple = simple / ((v / (1 - b2**t if graft == "adam" else 1)).sqrt() + eps)
        moved = (before - after) / 0.1
        for rows in (slice(0, 3), slice(3, 6)):
            for columns in (slice(0, 3), slice(3, 5)):
                torch.testing.assert_close(moved[rows, columns].norm(), simple[rows, columns].norm())
        assert torch.allclose(moved, simple) == (t <= 3)
        before = after


def test_kl_shampoo_is_whitening_by_the_dense_kronecker_product():
    weight, lr, b1, b2 = start(), 0.01, 0.9, 0.8
    w = weight.detach().clone().flatten()
    steps = gradients(12)
    found = walk(KLShampoo([weight], lr, (b1, b2), weight_decay=0.0, every=1, decomposition="eigh"), weight, steps)
    seed = steps[0].square().mean().sqrt()
    left, right, m = seed * torch.eye(M).double(), seed * torch.eye(N).double(), torch.zeros(M * N).double()
    for t, g in enumerate(steps, 1):
        left, right = (
            b2 * left + (1 - b2) * g @ torch.linalg.inv(right) @ g.T / N,
            b2 * right + (1 - b2) * g.T @ torch.linalg.inv(left) @ g / M,
        )
        m = b1 * m + (1 - b1) * g.flatten()
        w = w - lr * power(torch.kron(left, right), -0.5) @ m / (1 - b1**t)
        torch.testing.assert_close(found[t - 1].flatten(), w, rtol=1e-8, atol=1e-9)


def test_kl_shampoo_finds_a_covariance_that_is_a_kronecker_product():
    """Gradients A Z Bᵀ with white Z: the factors become A Aᵀ and B Bᵀ up to one scale."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(M, M, generator=g).double(), torch.randn(N, N, generator=g).double()
    weight = nn.Parameter(torch.zeros(M, N, dtype=torch.float64))
    optimizer = KLShampoo([weight], 0.0, (0.9, 0.995), every=20)
    for _ in range(1200):
        weight.grad = a @ torch.randn(M, N, generator=g).double() @ b.T
        optimizer.step()
    state = optimizer.state[weight]
    found, truth = torch.kron(state["left_0"][0], state["right_0"][0]), torch.kron(a @ a.T, b @ b.T)
    assert (found - truth).norm() / truth.norm() < 0.2
    _, second = optimizer.moments(weight)
    torch.testing.assert_close(second, truth.diagonal().view(M, N), rtol=0.3, atol=0.0)


@pytest.mark.parametrize("kind", FAMILY)
def test_blocks_are_parameters_of_their_own(kind):
    whole = start((7, 10))
    parts = [nn.Parameter(p.detach().clone()) for half in whole.split(5, 1) for p in half.split([4, 3], 0)]
    one, many = kind([whole], every=2, block_size=5), kind(parts, every=2, block_size=5)
    for gradient in gradients(6, (7, 10)):
        whole.grad = gradient
        for part, piece in zip(parts, (p for h in gradient.split(5, 1) for p in h.split([4, 3], 0)), strict=True):
            part.grad = piece.clone()
        one.step()
        many.step()
    joined = torch.cat([torch.cat(list(parts[:2])), torch.cat(list(parts[2:]))], 1)
    torch.testing.assert_close(whole, joined)
    tiles = tiling((7, 10), 5, 100).tiles
    assert sorted((t.m, t.n, t.blocks) for t in tiles) == [(3, 5, 2), (4, 5, 2)]


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_is_its_matrix_in_any_memory_format(kind, layout):
    kernel = nn.Parameter(start((6, 2, 2, 2)).detach().to(memory_format=layout))
    matrix = nn.Parameter(kernel.detach().reshape(6, 8).clone())
    one, other = kind([kernel], every=2), kind([matrix], every=2)
    for gradient in gradients(5, (6, 8)):
        kernel.grad = gradient.view(6, 2, 2, 2).contiguous(memory_format=layout)
        matrix.grad = gradient
        one.step()
        other.step()
    torch.testing.assert_close(kernel.detach().reshape(6, 8), matrix.detach())


@pytest.mark.parametrize("kind", FAMILY)
def test_parameters_taken_together_move_as_each_alone(kind, monkeypatch):
    def run():
        weights = [start((6, 5)), start((6, 5)), start((5, 6)), start((6,))]
        optimizer = kind(weights, every=2, block_size=4)
        for step, gradient in enumerate(gradients(6, (6, 5))):
            for i, weight in enumerate(weights):
                if (step, i) != (2, 0):
                    weight.grad = (gradient.roll(i, 0) if i < 2 else gradient.T if i == 2 else gradient[:, 0]).clone()
                else:
                    weight.grad = None  # one falls behind, and is no longer of one age with its like
            optimizer.step()
        return weights

    together = run()
    monkeypatch.setattr(_stack, "MOST", 1)
    for a, b in zip(together, run(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", FAMILY)
def test_a_side_that_is_too_long_is_not_rotated(kind):
    weight = start((3, 40))
    optimizer = kind([weight], max_dim=30)
    walk(optimizer, weight, gradients(4, (3, 40)))
    keys = optimizer.state[weight].keys()
    assert "left_0" in keys
    assert "right_0" not in keys
    assert optimizer.state[weight]["left_0"].shape == (1, 3, 3)


@pytest.mark.parametrize("kind", FAMILY)
def test_without_factors_it_is_adamw(kind):
    steps = gradients(6, (4,))
    weight, peer = start((4,)), start((4,))
    options = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    found = walk(kind([weight], **options), weight, steps)
    for a, b in zip(found, walk(torch.optim.AdamW([peer], **options), peer, steps), strict=True):
        torch.testing.assert_close(a, b)
    table, same = start((5, 4)), start((5, 4))
    found = walk(kind([table], max_dim=3, **options), table, gradients(6, (5, 4)))
    expected = walk(torch.optim.AdamW([same], **options), same, gradients(6, (5, 4)))
    torch.testing.assert_close(found[-1], expected[-1])


@pytest.mark.parametrize("kind", FAMILY)
def test_moments_and_factors_of_bfloat16_weights_are_float32_also_after_loading(kind):
    weight = nn.Parameter(torch.randn(6, 5, dtype=torch.bfloat16))
    optimizer = kind([weight])
    walk(optimizer, weight, gradients(3, (6, 5), torch.bfloat16))
    again = kind([weight])
    again.load_state_dict(optimizer.state_dict())
    for state in (optimizer.state[weight], again.state[weight]):
        assert {v.dtype for v in state.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("kind", FAMILY)
def test_three_failed_decompositions_keep_the_basis_and_the_fourth_is_an_error(kind, monkeypatch):
    weight = start((4, 3))
    optimizer = kind([("layer.weight", weight)], every=1, decomposition="eigh")
    walk(optimizer, weight, gradients(3))
    basis = optimizer.state[weight]["left_axes_0"].clone()
    truth = _kronecker.eigenpairs

    def fails(factors):
        values, vectors, done = truth(factors)
        return values, vectors * torch.nan, torch.zeros_like(done)

    monkeypatch.setattr(_kronecker, "eigenpairs", fails)
    walk(optimizer, weight, gradients(1))
    assert torch.equal(basis, optimizer.state[weight]["left_axes_0"])
    with pytest.raises(BadInput, match=r"'layer.weight' could not be decomposed 4 times"):
        walk(optimizer, weight, gradients(3))
    assert bool(weight.isfinite().all())


@pytest.mark.parametrize("kind", FAMILY)
def test_success_forgets_failures(kind, monkeypatch):
    weight = start((4, 3))
    optimizer = kind([weight], every=1, decomposition="eigh")
    truth = _kronecker.eigenpairs
    for round_ in range(6):
        if round_ % 2:
            monkeypatch.setattr(_kronecker, "eigenpairs", lambda f: (*truth(f)[:2], torch.zeros(len(f)).bool()))
        else:
            monkeypatch.setattr(_kronecker, "eigenpairs", truth)
        walk(optimizer, weight, gradients(1))


@pytest.mark.parametrize("kind", FAMILY)
def test_a_gradient_that_was_not_finite_is_named_at_the_next_refresh(kind):
    weight = start((4, 3))
    optimizer = kind([("layer.weight", weight)], every=2)
    steps = gradients(6)
    steps[1][0, 0] = torch.nan
    with pytest.raises(BadInput, match=r"'layer.weight' is not finite.*checkpoint"):
        walk(optimizer, weight, steps)


@pytest.mark.parametrize("kind", FAMILY)
def test_too_much_memory_is_refused_before_the_first_step_with_what_would_fit(kind):
    weights = [nn.Parameter(torch.zeros(300, 20))]  # of a square matrix blocks take the same at every size
    full = kind(weights, block_size=300).planned_bytes()
    with pytest.raises(BadInput, match=r"block_size=\d+ would fit") as caught:
        kind(weights, block_size=300, memory_limit=full // 2)
    size = int(str(caught.value).split("block_size=")[1].split()[0])
    assert kind(weights, block_size=size, memory_limit=full // 2).planned_bytes() <= full // 2
    with pytest.raises(BadInput, match="No block size fits"):
        kind(weights, memory_limit=1000)
    assert kind(weights, block_size=300, memory_limit=full).planned_bytes() == full


@pytest.mark.parametrize(
    ("option", "value"),
    [("betas", (0.9, 1.0)), ("betas", 0.9), ("eps", -1e-8), ("every", 0), ("every", 1.5), ("block_size", 0),
     ("max_dim", True), ("decomposition", "svd"), ("memory_limit", 0)],
)  # fmt: skip
@pytest.mark.parametrize("kind", FAMILY)
def test_bad_options(kind, option, value):
    with pytest.raises(BadInput, match=rf"{kind.__name__}\({option}="):
        kind([start()], **{option: value})


def test_bad_options_of_one():
    for options in ({"graft": "lamb"}, {"start": -1}, {"power": 0.0}, {"graft": "none", "start": 5}):
        with pytest.raises(BadInput, match=r"Shampoo\("):
            Shampoo([start()], **options)
    with pytest.raises(BadInput, match="carry"):
        SOAP([start()], carry="rotate")


@pytest.mark.parametrize("kind", FAMILY)
def test_decay_is_for_matrices_and_kernels(kind):
    net = nn.Sequential(nn.Embedding(5, 4), nn.Conv1d(4, 4, 1), nn.LayerNorm(4), nn.Linear(4, 2))
    groups = kind.for_model(net, weight_decay=0.3).param_groups
    assert [(g["weight_decay"], g["param_names"]) for g in groups] == [
        (0.3, ["1.weight", "3.weight"]), (0.0, ["0.weight", "1.bias", "2.weight", "2.bias", "3.bias"])
    ]  # fmt: skip


@pytest.mark.parametrize("every", [1, 3, 10])
@pytest.mark.parametrize("shape", [(6, 5), (12, 20)])
def test_soap_is_that_of_pytorch_optimizer(every, shape):
    peer_kind = pytest.importorskip("pytorch_optimizer").SOAP
    weight, other = start(shape), start(shape)
    steps = gradients(12, shape)
    # ε differs in its place; the peer takes QR in float32 and never carries V.
    options = {"lr": 0.01, "eps": 1e-12, "weight_decay": 0.0}
    found = walk(SOAP([weight], every=every, carry="permute", **options), weight, steps)
    expected = walk(peer_kind([other], precondition_frequency=every, **options), other, steps)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["soap", "kl_shampoo", "shampoo", "muon", "kfac"])
def test_sharded_parameters_are_refused_by_name(name, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        whole = torch.ones(4, 4)
        weight = nn.Parameter(torch.distributed.tensor.distribute_tensor(whole, mesh, [Shard(0)]))
        with pytest.raises(BadInput, match=r"'fc.weight' is sharded.*adamw"):
            catalog.get("optim", name)([("fc.weight", weight)])
    finally:
        torch.distributed.destroy_process_group()
