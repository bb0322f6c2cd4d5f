import pytest
import torch
from torch import nn
from torch.nn import functional

from dynaxx.numerics import flops
from dynaxx.numerics.flops import CountFlops


def counted(call):
    with CountFlops() as count:
        call()
    return count.total


@pytest.mark.parametrize("shape", [(5, 7), (2, 5, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_two_operations_per_weight_and_row(shape, bias):
    layer = nn.Linear(7, 11, bias=bias)
    x = torch.randn(shape)
    assert counted(lambda: layer(x)) == 2 * x[..., 0].numel() * 7 * 11


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 0, 1), (2, 1, 1), (1, 1, 3)])
def test_a_convolution_is_two_operations_per_weight_and_output_place(stride, padding, groups):
    layer = nn.Conv2d(6, 9, 3, stride=stride, padding=padding, groups=groups)
    x = torch.randn(4, 6, 10, 8)
    out = layer(x)
    places = 4 * out.shape[2] * out.shape[3]
    assert counted(lambda: layer(x)) == 2 * places * 9 * (6 // groups) * 9


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_two_matrix_products(causal):
    q, k = torch.randn(2, 3, 16, 8), torch.randn(2, 3, 16, 8)
    assert (
        counted(lambda: functional.scaled_dot_product_attention(q, k, k, is_causal=causal)) == 4 * 2 * 3 * 16 * 16 * 8
    )


def test_attention_with_a_mask_is_counted_too():
    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 16, 8)
    mask = torch.rand(5, 16) > 0.3
    assert counted(lambda: functional.scaled_dot_product_attention(q, k, k, mask)) == 4 * 2 * 3 * 5 * 16 * 8


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("both_ways", [False, True])
def test_recurrent_layers_are_two_operations_per_weight_and_step(kind, gates, both_ways):
    layer = kind(8, 16, num_layers=2, bidirectional=both_ways)
    ways = 1 + both_ways
    weights = gates * 16 * (8 + 16) + gates * 16 * (16 * ways + 16)
    assert counted(lambda: layer(torch.randn(10, 4, 8))) == 2 * 10 * 4 * weights * ways


def test_a_fused_recurrent_layer_of_an_accelerator_is_counted_by_its_weights():
    weights = [torch.zeros(64, 8), torch.zeros(64, 16), torch.zeros(64), torch.zeros(64)]
    assert flops._recurrent(torch.zeros(10, 4, 8), weights, 4, None) == 2 * 40 * 64 * (8 + 16)
    assert flops._recurrent(torch.zeros(33, 8), weights, 4, None) == 2 * 33 * 64 * (8 + 16)  # packed sequences


def test_a_whole_forward_adds_up_and_elementwise_work_is_left_out():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
    x = torch.randn(5, 1, 8, 8)
    assert counted(lambda: net(x)) == 2 * 5 * 36 * 4 * 9 + 2 * 5 * 144 * 10


def test_a_backward_costs_twice_its_forward():
    layer = nn.Linear(7, 11)
    x = torch.randn(5, 7, requires_grad=True)
    forward = counted(lambda: layer(x))
    out = layer(x).sum()
    assert counted(out.backward) == 2 * forward


def test_counting_changes_nothing_and_ends():
    layer, x = nn.Linear(7, 11), torch.randn(5, 7)
    with CountFlops() as count:
        inside = layer(x)
    total = count.total
    assert inside.equal(layer(x))
    assert count.total == total


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("Tesla V100-SXM2-32GB", 125e12),
        ("Tesla V100-PCIE-16GB", 112e12),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_peak_is_found_by_words_of_the_devices_name(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert flops.peak(torch.device("cuda")) == peak
    assert flops.peak(torch.device("cpu")) is None
