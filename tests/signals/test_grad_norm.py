import pytest
import torch
from torch import nn


def test_it_is_the_norm_of_each_layers_dense_gradient(small, backward, bench, layers):
    found = bench(small, torch.optim.SGD(small.parameters(), lr=0.1), "grad_norm")
    for seed in range(3):
        backward(small, seed)
        truth = layers.map(small, torch.linalg.vector_norm)
        assert found.step()["grad_norm"].tolist() == pytest.approx(truth, rel=1e-6)
        assert (truth[2], truth[3]) == (0, 0)  # frozen, unused
        assert min(truth[i] for i in (0, 1, 4)) > 0


def test_accumulated_gradients_are_measured_as_their_sum(small, backward, bench, layers):
    found = bench(small, torch.optim.SGD(small.parameters(), lr=0.1), "grad_norm")
    for seed in range(3):
        backward(small, seed)
    truth = layers.map(small, torch.linalg.vector_norm)
    assert found.step()["grad_norm"].tolist() == pytest.approx(truth, rel=1e-6)


def test_gradients_that_are_still_scaled_are_unscaled(small, backward, bench, layers):
    found = bench(small, torch.optim.SGD(small.parameters(), lr=0.1), "grad_norm")
    backward(small)
    truth = layers.map(small, torch.linalg.vector_norm)
    small.zero_grad()
    backward(small, factor=1024.0)
    value = found.step(gradient_factor=torch.tensor(1 / 1024))["grad_norm"]
    assert value.tolist() == pytest.approx(truth, rel=1e-6)


def test_clipping_comes_after(small, backward, bench, layers):
    found = bench(small, torch.optim.SGD(small.parameters(), lr=0.1), "grad_norm")
    backward(small)
    truth = layers.map(small, torch.linalg.vector_norm)
    value = found.step(lambda: nn.utils.clip_grad_norm_(small.parameters(), 1e-3))["grad_norm"]
    assert value.tolist() == pytest.approx(truth, rel=1e-6)


def test_layers_may_be_grouped(small, backward, bench, layers):
    found = bench(small, torch.optim.SGD(small.parameters(), lr=0.1), "grad_norm", layers=lambda name: "all")
    backward(small)
    truth = torch.tensor(layers.map(small, torch.linalg.vector_norm)).norm()
    assert found.step()["grad_norm"].tolist() == pytest.approx([float(truth)], rel=1e-6)


def test_tied_parameters_count_once(bench):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    found = bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "grad_norm")
    model(torch.ones(2, 4)).sum().backward()
    assert found.step()["grad_norm"].tolist() == pytest.approx([float(model[0].weight.grad.norm())], rel=1e-6)
