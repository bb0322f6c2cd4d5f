import pytest
import torch
from torch import nn


def test_it_is_the_share_of_exact_zeros(small, backward, bench, layers):
    found = bench(small, torch.optim.SGD(small.parameters(), lr=0.1), "grad_zeros")
    backward(small)
    small.head.weight.grad[0] = 0
    small.conv.bias.grad[:] = torch.tensor([0.0, -0.0, 1e-45, 1.0])
    truth = layers.map(small, lambda g: (g == 0).double().mean())
    assert found.step()["grad_zeros"].tolist() == pytest.approx(truth, abs=1e-12)
    assert truth[1:] == [2 / 28, 1.0, 1.0, 1 / 3]


def test_the_whole_model_is_weighted_by_layer_sizes(small, backward, bench, layers):
    found = bench(small, torch.optim.SGD(small.parameters(), lr=0.1), "grad_zeros")
    backward(small)
    shares = found.step()["grad_zeros"]
    column = found.columns["grad_zeros"]
    assert column.reduce == "mean"
    whole = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in small.parameters()])
    weights = torch.tensor(column.axis.weights, dtype=torch.float64)
    assert float((shares * weights).sum() / weights.sum()) == pytest.approx(float((whole == 0).double().mean()))


def test_complex_parameters_count_as_pairs(bench):
    model = nn.ParameterList([torch.ones(2, dtype=torch.complex64), torch.ones(4)])
    found = bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "grad_zeros")
    model[1].grad = torch.ones(4)
    assert found.step()["grad_zeros"].tolist() == [0.5]
    model[0].grad = torch.tensor([1j, 0])
    assert found.step()["grad_zeros"].tolist() == [3 / 8]


def test_a_sparse_gradient_has_the_zeros_that_it_does_not_store(bench):
    model = nn.Embedding(10, 3, sparse=True)
    found = bench(model, torch.optim.SparseAdam(model.parameters(), lr=0.1), "grad_zeros")
    with torch.sparse.check_sparse_tensor_invariants(enable=True):
        model(torch.tensor([1, 4, 1])).sum().backward()
        assert found.step()["grad_zeros"].tolist() == pytest.approx([24 / 30])
