"""Thresholds of SOAP, Shampoo and KL-Shampoo, against their own steps on quadratics with coupled entries."""

import pytest
import torch
from torch import nn

from dynaxx.errors import NotApplicable
from dynaxx.numerics.operator import Dense
from dynaxx.numerics.preconditioner import preconditioning
from dynaxx.numerics.space import Space
from dynaxx.optim.kl_shampoo import KLShampoo
from dynaxx.optim.shampoo import Shampoo
from dynaxx.optim.soap import SOAP

STILL = 1 - 1e-12
"""A decay of factors and second moments so slow that they stand still during a test."""
LEARNED = 12
"""Gradients that the state is made from."""


def hessian(seed=0):
    """12 × 12, positive, with eigenvalues from 0.3 to 3: a 4 × 3 matrix's, entries coupled across rows and columns."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64)).Q
    return basis @ torch.linspace(0.3, 3, 12, dtype=torch.float64).diag() @ basis.T


def learned(make, shape=(4, 3)):
    """A parameter and its optimizer after some gradients of unequal scales, whose second moments stand still then."""
    p = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = make(p)
    group = optimizer.param_groups[0]
    beta1 = group["betas"][0]
    group["betas"] = (beta1, 0.9)
    generator = torch.Generator().manual_seed(3)
    rows, columns = (torch.logspace(0, 1.5, size, dtype=torch.float64) for size in shape)
    for _ in range(LEARNED):
        p.grad = rows[:, None] * torch.randn(shape, generator=generator, dtype=torch.float64) * columns
        optimizer.step()
    state = optimizer.state[p]
    state["step"].fill_(1e6)
    state["exp_avg"].zero_()
    if "exp_avg_sq" in state:  # the same mean of squares by the bias correction of the slow decay
        state["exp_avg_sq"].mul_((1 - STILL**1e6) / (1 - 0.9 ** (LEARNED - optimizer.lag)))
    if group.get("start", 0) is None:
        group["start"] = LEARNED
    group.update(betas=(beta1, STILL), every=10**9)
    return p, optimizer


def run(make, curvature, steps=250):
    """The optimizer near the minimum of a quadratic, so near that its state sees nothing: does it move away?

    And λ₁ over the threshold as read at its end. A thousandth above it the amplitude grows by 4 % a step or more.
    """
    p, optimizer = learned(make)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        p.copy_(1e-100 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    sizes = []
    while len(sizes) < steps and (not sizes or sizes[-1] < 1e-60):
        p.grad = (curvature @ p.detach().flatten()).view_as(p)
        optimizer.step()
        sizes.append(float(p.detach().norm()))
    found = preconditioning(optimizer, Space([p]))
    ratio = float(torch.linalg.eigvalsh(found.operator(Dense(curvature)).dense())[-1]) / found.threshold
    return sizes[-1] >= 1e-60 or sizes[-1] > sizes[len(sizes) // 2], ratio


CASES = {
    "soap": (lambda p: SOAP([p], lr=0.1, weight_decay=0.0), 2 * 1.95 / 0.05),
    "soap, decay": (lambda p: SOAP([p], lr=0.1, weight_decay=0.8), 1.92 * 1.95 / 0.05),
    "soap, blocks": (lambda p: SOAP([p], lr=0.1, weight_decay=0.0, block_size=2), 2 * 1.95 / 0.05),
    "soap, one side": (lambda p: SOAP([p], lr=0.1, weight_decay=0.0, max_dim=3), 2 * 1.95 / 0.05),
    "kl-shampoo": (lambda p: KLShampoo([p], lr=0.1, weight_decay=0.0, betas=(0.9, 0.95)), 38.0),
    "shampoo": (lambda p: Shampoo([p], lr=0.1, weight_decay=0.0, graft="none"), 38.0),
    "shampoo, power": (lambda p: Shampoo([p], lr=0.1, weight_decay=0.0, graft="none", power=0.4), 38.0),
    "shampoo, adam": (lambda p: Shampoo([p], lr=0.1, weight_decay=0.0), 38.0),
    "shampoo, sgd": (lambda p: Shampoo([p], lr=0.1, weight_decay=0.0, graft="sgd"), 38.0),
    "shampoo, rmsprop, blocks": (
        lambda p: Shampoo([p], lr=0.1, weight_decay=0.0, graft="rmsprop", block_size=2),
        38.0,
    ),
    "shampoo, before its start": (lambda p: Shampoo([p], lr=0.1, weight_decay=0.0, start=10**9), 38.0),
}


@pytest.mark.parametrize("name", CASES)
def test_threshold_is_where_the_optimizer_itself_begins_to_grow(name):
    make, threshold = CASES[name]
    p, optimizer = learned(make)
    found = preconditioning(optimizer, Space([p]))
    assert found.threshold == pytest.approx(threshold, rel=1e-9)
    curvature = 1e9 * hessian()
    for above in (4.0, 1.5, 1.01):  # grafted lengths are those of the mode that prevails, the unstable one
        moved, ratio = run(make, curvature)
        assert moved
        curvature = curvature * above / ratio
    moved, ratio = run(make, curvature)
    assert moved
    assert run(make, curvature * 1.001 / ratio)[0]
    assert not run(make, curvature * 0.999 / ratio)[0]


def test_the_root_is_that_of_the_dense_preconditioner():
    """Every part of the model by itself: a matrix in blocks, a kernel, a vector; D D is what a step divides by."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((5, 4), (3, 2, 2), (4,))]
    optimizer = SOAP(parameters, lr=0.1, weight_decay=0.0, block_size=3, every=100)
    for _ in range(5):
        for p in parameters:
            p.grad = torch.randn_like(p)
        optimizer.step()
    before = [p.detach().clone() for p in parameters]
    state = {p: {k: v.clone() for k, v in optimizer.state[p].items()} for p in parameters}
    space = Space(parameters)
    found = preconditioning(optimizer, space)
    for p in parameters:
        p.grad = torch.zeros_like(p)
    optimizer.step()  # moves along the first moment alone, second moments decayed by 0.95
    moved = space.flatten([b - p.detach() for b, p in zip(before, parameters, strict=True)])
    first = space.flatten([0.95 * state[p]["exp_avg"] for p in parameters])
    steps = torch.cat([torch.full((p.numel(),), 4.0 if p.dim() > 1 else 5.0) for p in parameters])
    share, root = 1 - 0.95**steps, (0.95 * (1 - 0.95**steps) / (1 - 0.95 ** (steps + 1))).sqrt()
    expected = found.root(found.root(first[None]))[0] * share / (1 - 0.95 ** (steps + 1)) / root
    torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-12)
    dense = torch.cat([found.root(row[None]) for row in torch.eye(space.n, dtype=torch.float64)])
    torch.testing.assert_close(dense, dense.T, rtol=1e-12, atol=1e-12)
    assert torch.linalg.eigvalsh(dense)[0] > 0
    assert len(found.rotations) == 2


def test_what_has_not_moved_yet_has_no_scale():
    """SOAP's first gradient gives the bases alone; vectors take Adam's first step."""
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = SOAP([weight, bias], lr=0.1)
    with pytest.raises(NotApplicable, match="before its first step"):
        preconditioning(optimizer, Space([weight, bias]))
    weight.grad, bias.grad = torch.eye(2), torch.ones(2)
    optimizer.step()
    assert (preconditioning(optimizer, Space([weight, bias])).scale > 0).tolist() == [False] * 4 + [True] * 2
    optimizer.step()
    assert (preconditioning(optimizer, Space([weight, bias])).scale > 0).all()
