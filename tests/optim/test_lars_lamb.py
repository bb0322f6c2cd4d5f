"""LARS and LAMB against ten steps by hand in float64 and against pytorch_optimizer, with their safeguards."""

import copy
import io
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from dynaxx.errors import BadInput
from dynaxx.optim.lamb import Lamb
from dynaxx.optim.lars import Lars

STEPS = 10
SHAPES = {"kernel": (4, 3, 2, 2), "matrix": (5, 4), "vector": (5,), "scalar": (), "zero": (3, 2)}


def parameters(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    found = {n: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for n, s in SHAPES.items()}
    found["zero"].zero_()
    return {name: nn.Parameter(value) for name, value in found.items()}


def gradients():
    generator = torch.Generator().manual_seed(1)
    return [
        {
            n: torch.randn(s, generator=generator, dtype=torch.float64) * (i != 3 or n != "matrix")
            for n, s in SHAPES.items()
        }
        for i in range(STEPS)
    ]


def run(optimizer, params):
    rates = []
    for i, step in enumerate(gradients()):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - i / 20)
        rates.append(0.1 * (1 - i / 20))
        for name, parameter in params.items():
            parameter.grad = step[name].to(parameter.dtype)
        kept = {name: p.grad.clone() for name, p in params.items()}
        optimizer.step()
        assert all(torch.equal(p.grad, kept[name]) for name, p in params.items())  # gradients are only read
    return {name: p.detach().numpy().astype(np.float64) for name, p in params.items()}


def lars_by_hand(momentum, decay, trust, cap, adapt=True):
    w = {n: p.detach().numpy().copy() for n, p in parameters().items()}
    b = {n: np.zeros_like(v) for n, v in w.items()}
    for i, step in enumerate(gradients()):
        for n in w:
            g = step[n].numpy()
            ratio = 1.0
            if w[n].ndim >= 2 and adapt:
                size, other = np.sqrt((w[n] ** 2).sum()), np.sqrt((g**2).sum())
                if size > 0 and other + decay * size > 0:
                    ratio = min(cap, trust * size / (other + decay * size))
            b[n] = momentum * b[n] + ratio * (g + decay * w[n])
            w[n] = w[n] - 0.1 * (1 - i / 20) * b[n]
    return w


def lamb_by_hand(beta1, beta2, eps, decay, cap, adapt=True):
    w = {n: p.detach().numpy().copy() for n, p in parameters().items()}
    m = {n: np.zeros_like(v) for n, v in w.items()}
    v = {n: np.zeros_like(x) for n, x in w.items()}
    for i, step in enumerate(gradients()):
        for n in w:
            g = step[n].numpy()
            m[n] = beta1 * m[n] + (1 - beta1) * g
            v[n] = beta2 * v[n] + (1 - beta2) * g**2
            u = m[n] / (1 - beta1 ** (i + 1)) / (np.sqrt(v[n] / (1 - beta2 ** (i + 1))) + eps) + decay * w[n]
            size, other = np.sqrt((w[n] ** 2).sum()), np.sqrt((u**2).sum())
            ratio = min(cap, size / other) if w[n].ndim >= 2 and adapt and size > 0 and other > 0 else 1.0
            w[n] = w[n] - 0.1 * (1 - i / 20) * ratio * u
    return w


def close(found, truth, rtol=1e-12):
    for name in truth:
        np.testing.assert_allclose(found[name], truth[name], rtol=rtol, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize(("momentum", "decay", "trust", "cap"), [(0.9, 5e-4, 1e-3, 1.0), (0.0, 0.1, 2.0, 0.3)])
def test_lars_is_ten_steps_by_hand(momentum, decay, trust, cap, adapt):
    params = parameters()
    optimizer = Lars(params.items(), lr=0.1, momentum=momentum, weight_decay=decay, trust=trust, cap=cap, adapt=adapt)
    close(run(optimizer, params), lars_by_hand(momentum, decay, trust, cap, adapt))


@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize(("eps", "decay", "cap"), [(1e-6, 0.01, 10.0), (1e-3, 0.0, 0.5), (1e-6, 0.3, math.inf)])
def test_lamb_is_ten_steps_by_hand(eps, decay, cap, adapt):
    params = parameters()
    optimizer = Lamb(params.items(), lr=0.1, betas=(0.9, 0.99), eps=eps, weight_decay=decay, cap=cap, adapt=adapt)
    close(run(optimizer, params), lamb_by_hand(0.9, 0.99, eps, decay, cap, adapt))


def test_without_adaptation_they_are_torchs():
    """LARS is then SGD with momentum, LAMB Adam (decay 0, where coupled and decoupled agree)."""
    for make, torchs in (
        (lambda p: Lars(p, lr=0.1, adapt=False), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4)),
        (lambda p: Lamb(p, lr=0.1, weight_decay=0.0, adapt=False), lambda p: torch.optim.Adam(p, lr=0.1, eps=1e-6)),
    ):
        ours, theirs = parameters(), parameters()
        close(run(make(ours.values()), ours), run(torchs(theirs.values()), theirs))


PEER = """
import sys, torch
from pytorch_optimizer import LARS, Lamb
given = torch.load(sys.argv[1], weights_only=True)
for name, make in {
    "lars": lambda p: LARS(p, lr=0.1, weight_decay=0.05, momentum=0.9, trust_coefficient=0.1),
    "lamb": lambda p: Lamb(p, lr=0.1, betas=(0.0, 0.0), weight_decay=0.1, weight_decouple=False, eps=1e-9),
}.items():
    params = {n: torch.nn.Parameter(t.clone()) for n, t in given["parameters"].items()}
    optimizer = make(list(params.values()))
    if name == "lamb":
        optimizer.clamp = float("inf")
    for step in given["gradients"]:
        for n, p in params.items():
            p.grad = step[n].clone()
        optimizer.step()
    given[name] = {n: p.detach() for n, p in params.items()}
torch.save(given, sys.argv[1])
"""


def peer():
    """An interpreter that has pytorch_optimizer: this one, or that of DYNAXX_PEERS."""
    for python in (sys.executable, os.environ.get("DYNAXX_PEERS", "")):
        if python and Path(python).exists():
            asked = subprocess.run([python, "-c", "import pytorch_optimizer"], capture_output=True, check=False)
            if asked.returncode == 0:
                return python
    pytest.skip("pytorch_optimizer is not installed here (DYNAXX_PEERS names an interpreter that has it)")
    return None


@pytest.mark.slow
def test_equal_pytorch_optimizers(tmp_path):
    """On tensors of two and more dimensions, where the rules agree: it drops the decay of vectors, and its LAMB
    corrects no bias, which without memory there is none of. It divides by ‖u‖ + ε."""
    python = peer()
    names = ["kernel", "matrix"]
    start = {n: p.detach() for n, p in parameters().items() if n in names}
    steps = [{n: g[n] for n in names} for g in gradients()]
    path = tmp_path / "given.pt"
    torch.save({"parameters": start, "gradients": steps}, path)
    subprocess.run([python, "-c", PEER, str(path)], check=True, capture_output=True)
    theirs = torch.load(path, weights_only=True)

    for name, make in (
        ("lars", lambda p: Lars(p, lr=0.1, momentum=0.9, weight_decay=0.05, trust=0.1, cap=math.inf)),
        ("lamb", lambda p: Lamb(p, lr=0.1, betas=(0.0, 0.0), weight_decay=0.1, eps=1e-9, cap=math.inf)),
    ):
        ours = {n: nn.Parameter(t.clone()) for n, t in start.items()}
        optimizer = make(ours.values())
        for step in steps:
            for n, p in ours.items():
                p.grad = step[n].clone()
            optimizer.step()
        for n in names:
            torch.testing.assert_close(ours[n].detach(), theirs[name][n], rtol=1e-7, atol=1e-9)


def test_ratio_is_one_where_a_norm_is_zero_and_capped_where_large():
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    Lars([weight], lr=0.5, momentum=0.0, weight_decay=0.0).step()
    assert torch.equal(weight.detach(), torch.full((2, 2), -0.5))
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.zeros(2, 2)
    Lamb([weight], lr=0.5, weight_decay=0.0).step()
    assert torch.equal(weight.detach(), torch.ones(2, 2))
    weight = nn.Parameter(torch.full((2, 2), 1e6))
    weight.grad = torch.full((2, 2), 1e-3)
    Lars([weight], lr=1.0, momentum=0.0, weight_decay=0.0, trust=1.0).step()
    assert torch.allclose(1e6 - weight.detach().double(), torch.full((2, 2), 1e-3, dtype=torch.float64), atol=0.07)


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(11, 6), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
    )


def loss_of(net, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randint(0, 11, (16, 2), generator=generator), torch.randint(0, 3, (16,), generator=generator)
    return functional.cross_entropy(net(x), y)


@pytest.mark.parametrize("kind", [Lars, Lamb])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_wide_planned_and_resumes_bit_for_bit(kind, dtype):
    def build():
        net = model().to(dtype)
        return net, kind.for_model(net, lr=0.02)

    net, optimizer = build()
    planned = optimizer.planned_bytes()
    for seed in range(4):
        loss_of(net, seed).backward()
        optimizer.step()
        optimizer.zero_grad()
    held = [t for state in optimizer.state.values() for t in state.values()]
    assert sum(t.numel() * t.element_size() for t in held) == planned
    assert all(t.dtype == torch.float32 for t in held)
    buffer = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    again, resumed = build()
    again.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["optimizer"])
    for seed in range(4, 8):
        for n, o in ((net, optimizer), (again, resumed)):
            loss_of(n, seed).backward()
            o.step()
            o.zero_grad()
    for a, b in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", [Lars, Lamb])
def test_for_model_decays_matrices_only_and_steps_with_a_closure(kind):
    net = model()
    optimizer = kind.for_model(net, lr=0.05, weight_decay=0.1, **({"trust": 0.5} if kind is Lars else {}))
    decayed, rest = optimizer.param_groups
    assert decayed["param_names"] == ["3.weight", "5.weight"]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    before = copy.deepcopy(net.state_dict())

    def closure():
        optimizer.zero_grad()
        loss = loss_of(net, 0)
        loss.backward()
        return loss

    first = float(optimizer.step(closure).detach())
    for _ in range(60):
        last = float(optimizer.step(closure).detach())
    assert last < 0.7 * first
    assert not torch.equal(before["3.weight"], net[3].weight)


@pytest.mark.parametrize("kind", [Lars, Lamb])
def test_a_rate_that_is_a_tensor(kind):
    a, b = parameters(), parameters()
    for params, rate in ((a, 0.1), (b, torch.tensor(0.1, dtype=torch.float64))):
        optimizer = kind(params.values(), lr=rate)
        for step in gradients()[:3]:
            for name, p in params.items():
                p.grad = step[name]
            optimizer.step()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: Lars(p, lr=-1.0), "Lars\\(lr=...\\) must be a finite number of at least 0. Got -1.0"),
        (lambda p: Lars(p, trust=0.0), "Lars\\(trust=...\\) must be a finite number above 0"),
        (lambda p: Lars(p, cap=math.nan), "Lars\\(cap=...\\) must be a number above 0. Got nan"),
        (lambda p: Lars([{"params": p, "adapt": 1}]), "Lars\\(adapt=...\\) must be True or False"),
        (lambda p: Lamb(p, betas=(0.9, 1.0)), "Lamb\\(betas=...\\) must be two numbers in \\[0, 1\\)"),
        (lambda p: Lamb(p, eps=0.0), "Lamb\\(eps=...\\) must be a finite number above 0"),
        (lambda p: Lamb([nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))]), "must be real floating point"),
    ],
)
def test_bad_input(make, said):
    with pytest.raises(BadInput, match=said):
        make(list(parameters().values()))


@pytest.mark.parametrize("kind", [Lars, Lamb])
def test_sparse_gradients_are_refused_by_name(kind):
    net = nn.Embedding(4, 2, sparse=True)
    optimizer = kind.for_model(net)
    net(torch.tensor([1])).sum().backward()
    with pytest.raises(BadInput, match="gradient of 'weight' is sparse"):
        optimizer.step()
