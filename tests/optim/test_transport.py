"""Moments that move between optimizers."""

import pytest
import torch
from torch import nn

from dynaxx import catalog
from dynaxx.errors import BadInput
from dynaxx.optim._transport import Transportable
from dynaxx.optim.adamw import AdamW
from dynaxx.optim.muon import Muon
from dynaxx.optim.sgd import SGD
from dynaxx.optim.soap import SOAP

NAMES = [n for n in catalog.names("optim") if issubclass(catalog.get("optim", n), Transportable)]
SECOND = [n for n in NAMES if n in ("adamw", "soap", "shampoo")]


def noise(count, seed=0):
    """Gradients with a mean, correlated rows and a different spread by column."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(6, 6, generator=torch.Generator().manual_seed(9))
    return [(0.3 + mix @ torch.randn(6, 5, generator=g)) * torch.logspace(-1, 1, 5) for _ in range(count)]


def run(kind, steps, **options):
    weight = nn.Parameter(torch.zeros(6, 5))
    optimizer = kind([weight], **({"momentum": 0.9} if kind is SGD else {}), **options)
    for gradient in steps:
        weight.grad = gradient
        optimizer.step()
    return weight, optimizer


def test_the_family_takes_part():
    assert {"adamw", "sgd", "muon", "soap", "shampoo", "kl_shampoo", "kfac"} >= set(NAMES)
    assert {"adamw", "muon", "soap", "shampoo", "kl_shampoo"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_moment_is_the_mean_of_gradients_from_the_first_step_on(name):
    """Bias-corrected: of a constant gradient it is the gradient, after any number of steps."""
    kind = catalog.get("optim", name)
    constant = noise(1)[0]
    weight, optimizer = run(kind, [constant] * (200 if kind is SGD else 4))
    first, _ = optimizer.moments(weight)
    torch.testing.assert_close(first, constant, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_adopted_is_handed_on(name):
    """Both moments, and with them the next step's scale, whatever the rates of decay are."""
    kind = catalog.get("optim", name)
    source, adam = run(AdamW, noise(30), betas=(0.8, 0.99))
    first, second = adam.moments(source)
    weight = nn.Parameter(torch.zeros(6, 5))
    target = kind([weight], **({"momentum": 0.9} if kind is SGD else {}))
    target.adopt(weight, first, second, 30, noise(16, seed=1))
    again, other = target.moments(weight)
    torch.testing.assert_close(again, first, rtol=1e-4, atol=1e-5)
    if name in ("adamw", "shampoo"):
        torch.testing.assert_close(other, second, rtol=1e-4, atol=1e-5)
    elif name in ("soap", "kl_shampoo"):  # the basis mixes entries: the sum is kept, the rest nearly
        torch.testing.assert_close(other.sum(), second.sum(), rtol=1e-4, atol=0.0)
        assert torch.corrcoef(torch.stack([other.flatten(), second.flatten()]))[0, 1] > 0.8


@pytest.mark.parametrize("name", SECOND)
def test_second_moments_are_those_of_the_gradients(name):
    steps = noise(400)
    weight, optimizer = run(catalog.get("optim", name), steps, betas=(0.9, 0.995))
    _, second = optimizer.moments(weight)
    truth = torch.stack(steps).square().mean(0)
    assert (second / truth).log().abs().mean() < 0.25


@pytest.mark.parametrize("name", ["soap", "kl_shampoo", "muon", "shampoo"])
def test_the_first_step_after_a_switch_is_of_the_steady_length(name):
    """Cold, it is far longer; Adam's own with fresh state is 4 times as long (references: 4.5)."""
    kind = catalog.get("optim", name)
    options = {"lr": 0.01, "weight_decay": 0.0}
    source, adam = run(AdamW, noise(60), betas=(0.9, 0.95), **options)

    def next_step(weight, optimizer):
        before = weight.detach().clone()
        weight.grad = noise(1, seed=7)[0]
        optimizer.step()
        return float((weight.detach() - before).norm())

    weight = nn.Parameter(source.detach().clone())
    carried = kind([weight], **options)
    carried.adopt(weight, *adam.moments(source), 60, noise(16, seed=1))
    moved = next_step(weight, carried)
    fresh = nn.Parameter(source.detach().clone())
    cold = next_step(fresh, AdamW([fresh], betas=(0.9, 0.95), **options))
    steady = next_step(source, adam)
    assert 0.5 < moved / steady < 1.5
    assert cold > 2 * steady


def test_muon_gives_adamw_a_second_moment_from_gradients():
    source, muon = run(Muon, noise(30))
    first, second = muon.moments(source)
    assert second is None
    weight = nn.Parameter(torch.zeros(6, 5))
    adam = AdamW([weight])
    fresh = noise(16, seed=1)
    adam.adopt(weight, first, second, 30, fresh)
    torch.testing.assert_close(adam.moments(weight)[1], torch.stack(fresh).square().mean(0))


def test_sgd_keeps_a_sum():
    weight = nn.Parameter(torch.zeros(2))
    sgd = SGD([weight], momentum=0.75)
    sgd.adopt(weight, torch.ones(2), None, 10)
    assert sgd.state[weight]["momentum_buffer"].tolist() == [4.0, 4.0]
    sgd.adopt(weight, None, None, 10)
    assert sgd.moments(weight) == (None, None)


@pytest.mark.parametrize("name", NAMES)
def test_before_the_first_step_there_is_nothing(name):
    weight = nn.Parameter(torch.zeros(6, 5))
    optimizer = catalog.get("optim", name)([weight])
    assert optimizer.moments(weight) == (None, None)
    with pytest.raises(BadInput, match="not one of its own"):
        optimizer.moments(nn.Parameter(torch.zeros(6, 5)))


def test_bad_input():
    weight = nn.Parameter(torch.zeros(6, 5))
    with pytest.raises(BadInput, match=r"SOAP.adopt\(gradients=None\).*Give 8"):
        SOAP([weight]).adopt(weight, torch.zeros(6, 5), torch.ones(6, 5), 3)
    with pytest.raises(BadInput, match=r"AdamW.adopt\(second=None\)"):
        AdamW([weight]).adopt(weight, torch.zeros(6, 5), None, 3)
    with pytest.raises(BadInput, match="at least 1"):
        AdamW([weight]).adopt(weight, torch.zeros(6, 5), torch.ones(6, 5), 0)
