"""Thresholds against torch.optim itself, run on a quadratic until it grows or dies; scaling; what is refused."""

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, RMSprop

from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.operator import Dense
from dynaxx.numerics.preconditioner import preconditioning
from dynaxx.numerics.space import Space

STILL = 1 - 1e-12
"""A decay of second moments so slow that they stand still during a test."""


def _frozen(optimizer, p, step=1e6):
    """State of an optimizer whose second moments stand still and are far above what the test's gradients add."""
    state = optimizer.state[p]
    still = 1 - STILL**step
    if isinstance(optimizer, Adam | NAdam):
        state.update(step=torch.tensor(step), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.full_like(p, 4.0 * still))
        if isinstance(optimizer, NAdam):
            state["mu_product"] = torch.tensor(0.0)
        elif optimizer.param_groups[0]["amsgrad"]:
            state["max_exp_avg_sq"] = torch.full_like(p, 9.0 * still)
    elif isinstance(optimizer, RMSprop):
        state.update(step=torch.tensor(step), square_avg=torch.full_like(p, 4.0))
        if optimizer.param_groups[0]["momentum"]:
            state["momentum_buffer"] = torch.zeros_like(p)
        if optimizer.param_groups[0]["centered"]:
            state["grad_avg"] = torch.full_like(p, 1.0)
    elif isinstance(optimizer, Adagrad):
        state.update(step=torch.tensor(step), sum=torch.full_like(p, 4.0))


def _grows(make, curvature, steps=600):
    """Whether torch's own optimizer moves away from the minimum of curvature · x²/2."""
    p = nn.Parameter(torch.full((1,), 1e-150, dtype=torch.float64))
    optimizer = make(p)
    _frozen(optimizer, p)
    sign = -1.0 if optimizer.param_groups[0]["maximize"] else 1.0
    sizes = []
    for _ in range(steps):
        p.grad = sign * curvature * p.detach()
        optimizer.step()
        sizes.append(abs(p.item()))
        if sizes[-1] > 1e-120:
            return True  # before second moments notice
    return max(sizes[-100:]) > max(sizes[200:300])


def _highest_stable(make, low, high):
    assert not _grows(make, low)
    assert _grows(make, high)
    for _ in range(10):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if _grows(make, middle) else (middle, high)
    return low


CASES = {
    "gradient descent": (lambda p: SGD([p], lr=0.1), 2.0),
    "heavy ball": (lambda p: SGD([p], lr=0.1, momentum=0.9), 3.8),
    "dampening": (lambda p: SGD([p], lr=0.1, momentum=0.9, dampening=0.5), 7.6),
    "nesterov": (lambda p: SGD([p], lr=0.1, momentum=0.9, nesterov=True), 3.8 / 2.8),
    "decay": (lambda p: SGD([p], lr=0.1, momentum=0.9, weight_decay=2.0), 3.8),
    "maximize": (lambda p: SGD([p], lr=0.1, maximize=True, weight_decay=1.0), 2.0),
    "adam": (lambda p: Adam([p], lr=0.1, betas=(0.9, STILL)), 38.0),
    "adam, coupled decay": (lambda p: Adam([p], lr=0.1, betas=(0.9, STILL), weight_decay=3.0), 38.0),
    "adam, eps": (lambda p: Adam([p], lr=0.1, betas=(0.5, STILL), eps=0.7), 6.0),
    "amsgrad": (lambda p: Adam([p], lr=0.1, betas=(0.9, STILL), amsgrad=True), 38.0),
    "adamw": (lambda p: AdamW([p], lr=0.1, betas=(0.9, STILL), weight_decay=0.8), 1.92 * 19),
    "nadam": (lambda p: NAdam([p], lr=0.1, betas=(0.9, STILL)), 38 / 2.8),
    "nadam, decoupled": (
        lambda p: NAdam([p], lr=0.1, betas=(0.9, STILL), weight_decay=0.8, decoupled_weight_decay=True),
        1.92 * 19 / 2.8,
    ),
    "rmsprop": (lambda p: RMSprop([p], lr=0.1, alpha=STILL), 2.0),
    "rmsprop, momentum, centered": (
        lambda p: RMSprop([p], lr=0.1, alpha=STILL, momentum=0.9, centered=True, eps=0.3),
        3.8,
    ),
    "adagrad": (lambda p: Adagrad([p], lr=0.1, lr_decay=1e-6), 2.0),
}


@pytest.mark.parametrize("name", CASES)
def test_threshold_is_where_torchs_own_optimizer_begins_to_grow(name):
    make, threshold = CASES[name]
    p = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = make(p)
    _frozen(optimizer, p)
    found = preconditioning(optimizer, Space([p]))
    assert found.threshold == pytest.approx(threshold, rel=1e-9)

    def scaled(curvature):
        signed = -curvature if optimizer.param_groups[0]["maximize"] else curvature
        return float(found.operator(Dense(torch.full((1, 1), signed, dtype=torch.float64))).dense())

    expected = (threshold / float(found.scale.square())) - (0.0 if found.decay is None else float(found.decay))
    stable = _highest_stable(make, 0.9 * expected, 1.1 * expected)
    assert scaled(stable) == pytest.approx(threshold, rel=1e-3)


@pytest.mark.parametrize("step", [1, 3, 10])
@pytest.mark.parametrize("kind", [Adam, NAdam])
def test_early_bias_correction_is_that_of_the_step_taken(kind, step):
    """The answer to an impulse is the step that torch takes: with frozen moments, P⁻¹ is that of its own division."""
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = kind([p], lr=0.01)
    gradient = torch.tensor([0.5, -2.0, 1e-3], dtype=torch.float64)
    for _ in range(step):
        p.grad = gradient
        before = p.detach().clone()
        optimizer.step()
    found = preconditioning(optimizer, Space([p]))
    moved = before - p.detach()
    average = 1 - 0.9**step  # of constant gradients, in units of the gradient
    if kind is Adam:
        assert torch.allclose(moved, found.scale.square() * average * gradient, rtol=1e-12)
    else:
        mu = [0.9 * (1 - 0.5 * 0.96 ** (t * 4e-3)) for t in range(1, step + 2)]
        product = math.prod(mu[:step])
        now, following = (1 - mu[step - 1]) / (1 - product), mu[step] / (1 - product * mu[step])
        response, limit = now + following * 0.1 / 1.9, 0.1 * 2.8 / 1.9
        share = (now + following * average) / (response / limit)
        assert torch.allclose(moved, found.scale.square() * share * gradient, rtol=1e-10)


def test_groups_of_different_rates_and_momenta_cross_together():
    """Two coupled parameters in groups of their own: growth begins where λ₁(DHD) meets the threshold."""
    a = torch.tensor([[2.0, 1.5], [1.5, 3.0]], dtype=torch.float64)

    def run(scale, steps=3000):
        p, q = (nn.Parameter(torch.full((1,), 1e-100, dtype=torch.float64)) for _ in range(2))
        optimizer = SGD([{"params": [p], "lr": 0.3, "momentum": 0.5}, {"params": [q], "lr": 0.2, "momentum": 0.9}])
        found = preconditioning(optimizer, Space([p, q]))
        top = torch.linalg.eigvalsh(found.operator(Dense(scale * a)).dense())[-1] / found.threshold
        for step in range(steps):
            g = scale * a @ torch.cat([p.detach(), q.detach()])
            p.grad, q.grad = g[:1], g[1:]
            optimizer.step()
            if step == steps // 2:
                middle = p.item() ** 2 + q.item() ** 2
        return float(top), p.item() ** 2 + q.item() ** 2 > middle

    at_one = run(1.0)[0]
    assert run(0.999 / at_one) == (pytest.approx(0.999), False)
    assert run(1.001 / at_one) == (pytest.approx(1.001), True)


def test_state_of_every_implementation_is_read_alike():
    scales = []
    for options in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        p = nn.Parameter(torch.ones(4))
        optimizer = Adam([p], lr=torch.tensor(0.01) if "foreach" not in options else 0.01, **options)
        for i in range(3):
            p.grad = torch.arange(4.0) + i
            optimizer.step()
        scales.append(preconditioning(optimizer, Space([p])).scale)
    assert torch.allclose(scales[0], scales[1])
    assert torch.allclose(scales[0], scales[2])


def test_parameters_that_do_not_move_have_no_scale():
    p, q, r = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = Adam([p, q])
    p.grad = torch.ones(2)
    optimizer.step()
    scale = preconditioning(optimizer, Space([p, q, r])).scale
    assert (scale > 0).tolist() == [True, True, False, False, False, False]
    with pytest.raises(BadInput, match="none of the space"):
        preconditioning(optimizer, Space([r]))


def test_a_subclass_with_the_same_step_has_the_same_threshold():
    class Named(SGD):
        pass

    p = nn.Parameter(torch.ones(2))
    for _ in range(2):  # torch wraps the step of each class once, when one is made
        assert preconditioning(Named([p], lr=0.1, momentum=0.5), Space([p])).threshold == pytest.approx(3.0)


def test_what_has_no_threshold_says_so():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    space = Space([p, q])
    with pytest.raises(NotApplicable, match=r"Adamax has no known.*SGD, Adam, AdamW, NAdam, RMSprop, Adagrad"):
        preconditioning(Adamax([p]), space)
    with pytest.raises(NotApplicable, match="before its first step"):
        preconditioning(AdamW([p]), space)

    class Mine(SGD):
        def step(self, closure=None):
            return super().step(closure)

    with pytest.raises(NotApplicable, match="Mine has no known"):
        preconditioning(Mine([p], lr=0.1), space)
    with pytest.raises(NotApplicable, match="climb"):
        preconditioning(SGD([{"params": [p], "maximize": True}, {"params": [q]}], lr=0.1), space)
