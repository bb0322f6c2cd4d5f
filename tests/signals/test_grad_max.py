import pytest
import torch


def test_it_is_the_largest_magnitude_of_each_layer(small, backward, bench, layers):
    found = bench(small, torch.optim.SGD(small.parameters(), lr=0.1), "grad_max")
    backward(small)
    small.head.weight.grad[1, 2] = -7.0
    truth = layers.map(small, lambda g: g.abs().max())
    assert found.step()["grad_max"].tolist() == truth
    assert truth[4] == 7.0


def test_gradients_that_are_still_scaled_are_unscaled(small, backward, bench, layers):
    found = bench(small, torch.optim.SGD(small.parameters(), lr=0.1), "grad_max")
    backward(small)
    truth = [value / 64 for value in layers.map(small, lambda g: g.abs().max())]
    assert found.step(gradient_factor=torch.tensor(1 / 64))["grad_max"].tolist() == truth


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_gradient_that_is_not_finite_has_no_finite_maximum(small, backward, bench, bad):
    found = bench(small, torch.optim.SGD(small.parameters(), lr=0.0), "grad_max")
    backward(small)
    small.head.weight.grad[1, 2] = bad
    value = found.step()["grad_max"]
    assert value.isfinite().tolist() == [True, True, True, True, False]
