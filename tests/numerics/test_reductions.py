import math

import pytest
import torch
from torch import nn

from dynaxx.core.events import StepView
from dynaxx.core.parameters import Layout, flat_real
from dynaxx.numerics import reductions
from dynaxx.numerics.reductions import (
    count,
    entries,
    gradient_tensor_norms,
    layer_maxima,
    layer_norms,
    layer_shares,
    layer_sums,
    tensor_norms,
)


def model(dtype=torch.float32):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 20), nn.Sequential(nn.Linear(20, 10), nn.BatchNorm1d(10)), nn.Linear(10, 3))
    return net.to(dtype)


def dense(tensors, layout):
    """Every layer's entries as one float64 vector, by the definition."""
    parts = [[] for _ in layout.layers]
    for row, tensor in zip(layout.layer_of, tensors, strict=True):
        parts[row].append(torch.zeros(1) if tensor is None else flat_real(tensor))
    return [torch.cat([part.to(torch.float64) for part in each]) for each in parts]


def random_like(layout, scale=1.0):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(p.shape, generator=generator).to(p.dtype) * scale for p in layout.parameters]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("missing", [(), (1, 4), range(8)])
@pytest.mark.parametrize("factor", [None, 0.125])
def test_norms_and_maxima_are_those_of_the_dense_vectors(dtype, missing, factor):
    layout = Layout(model(dtype))
    tensors = [None if i in missing else t for i, t in enumerate(random_like(layout))]
    given = None if factor is None else torch.tensor(factor)
    times = factor or 1.0
    norms, maxima = layer_norms(tensors, layout, given), layer_maxima(tensors, layout, given)
    truth = dense(tensors, layout)
    assert norms.dtype == (dtype if dtype == torch.float64 and len(missing) < 8 else torch.float32)
    tolerance = 1e-13 if norms.dtype == torch.float64 else 1e-6
    assert norms.shape == maxima.shape == (4,)
    assert norms.tolist() == pytest.approx([times * float(v.norm()) for v in truth], rel=tolerance)
    assert maxima.tolist() == [times * float(v.abs().max()) for v in truth]


def test_norms_by_tensor_keep_their_places():
    layout = Layout(nn.Linear(2, 3))
    assert tensor_norms([torch.full((3, 2), 2.0), None], layout).tolist() == pytest.approx([math.sqrt(24), 0.0])
    assert tensor_norms([None, torch.tensor([3.0, 0.0, 4.0])], layout).tolist() == [0.0, 5.0]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_gradient_norms_are_numbers_on_the_cpu_and_stay_on_any_other_device(device, monkeypatch):
    monkeypatch.setattr(Layout, "device", torch.device(device))
    net = nn.Linear(2, 3)
    net.weight.grad = torch.full((3, 2), 2.0)  # the bias has none
    view = StepView(step=1, layout=Layout(net), optimizer=torch.optim.SGD(net.parameters()))
    norms = gradient_tensor_norms(view)
    if device == "cpu":
        assert norms == pytest.approx([math.sqrt(24), 0.0])
    else:  # reading a number of a meta tensor would raise
        assert norms.device.type == "meta"
        assert norms.shape == (2,)
    assert gradient_tensor_norms(view) is norms


def test_parameters_of_several_dtypes():
    net = nn.Sequential(nn.Linear(30, 20).double(), nn.Linear(20, 3), nn.Linear(3, 2).bfloat16())
    layout = Layout(net)
    tensors = random_like(layout)
    truth = dense(tensors, layout)
    assert layer_norms(tensors, layout).tolist() == pytest.approx([float(v.norm()) for v in truth], rel=1e-6)
    assert layer_maxima(tensors, layout).tolist() == [float(v.abs().max()) for v in truth]


def test_complex_parameters_count_as_pairs_of_real_ones():
    layout = Layout(nn.ParameterList([torch.zeros(2, dtype=torch.complex64), torch.zeros(1)]))
    tensors = [torch.tensor([3 - 4j, 12j], dtype=torch.complex64), torch.ones(1)]
    assert layer_norms(tensors, layout).tolist() == pytest.approx([math.sqrt(170)])
    assert layer_maxima(tensors, layout).tolist() == [12.0]
    assert layer_shares([count(t, "zero") for t in tensors], layout).tolist() == [1 / 5]


def test_sparse_gradients_count_as_dense_ones():
    layout = Layout(nn.Embedding(5, 2, sparse=True))
    at, values = torch.tensor([[0, 2, 0]]), torch.tensor([[1.0, 2], [3, 0], [5, 6]])
    gradient = torch.sparse_coo_tensor(at, values, (5, 2), check_invariants=True)
    whole = gradient.to_dense()
    assert layer_norms([gradient], layout).tolist() == pytest.approx([float(whole.norm())])
    assert layer_maxima([gradient], layout).tolist() == [8.0]
    assert int(count(gradient, "zero")) == int((whole == 0).sum()) == 7
    assert int(count(gradient, "below", 4.0)) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_layer(bad):
    layout = Layout(model())
    tensors = random_like(layout)
    tensors[2][3, 4] = bad
    for values in (layer_norms(tensors, layout), layer_maxima(tensors, layout)):
        assert values.isfinite().tolist() == [True, False, True, True]
        assert math.isnan(values[1]) == math.isnan(bad)


def test_sums_are_exact_for_numbers_and_tensors_alike():
    layout = Layout(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    values = [2.0**53 - 1, torch.tensor(1), 0.25, torch.tensor(2**40 + 1)]
    assert layer_sums(values, layout).tolist() == [2.0**53, 2.0**40 + 1.25]
    assert layer_sums([torch.tensor(1.5)] * 4, layout).tolist() == [3.0, 3.0]
    assert layer_sums([1.0, 2.0, 3.0, 4.0], layout).tolist() == [3.0, 7.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("chunk", [1 << 20, 7])
def test_counts_are_exact(monkeypatch, dtype, chunk):
    monkeypatch.setattr(reductions, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    special = torch.tensor(
        [0.0, -0.0, math.nan, math.inf, -math.inf, 0.5, -0.5, 0.25, 1e-4, -1e-4], dtype=torch.float64
    )
    x = special[torch.randint(0, len(special), (6, 11), generator=generator)]
    tensor = torch.complex(x.float(), x.flip(0).float()) if dtype.is_complex else x.to(dtype)
    flat = flat_real(tensor).double()
    assert int(count(tensor, "zero")) == int((flat == 0).sum())
    assert int(count(tensor, "nonfinite")) == int((~flat.isfinite()).sum())
    for threshold in (0.5, 0.3, torch.tensor(0.5)):
        magnitude = flat.abs()
        assert int(count(tensor, "below", threshold)) == int(((magnitude > 0) & (magnitude < float(threshold))).sum())
        assert int(count(tensor, "under", threshold)) == int((flat < float(threshold)).sum())
    assert count(tensor, "zero").dtype == count(tensor, "nonfinite").dtype == torch.int64
    assert entries(tensor) == flat.numel()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_threshold_is_not_rounded_to_the_entries_dtype(dtype):
    x = torch.tensor([1.0, 1.0], dtype=dtype)
    above = torch.tensor(1.0 + 2**-20)  # which is 1 in 16 bits
    assert int(count(x, "below", above)) == 2
    assert int(count(x, "under", above)) == 2
    assert int(count(torch.full((3,), 2**-24, dtype=torch.float16), "below", torch.tensor(2.0**-30))) == 0


def test_nothing_is_counted_in_a_missing_tensor():
    assert count(None, "zero") == count(None, "below", 1.0) == 0.0


def test_counting_does_not_touch_what_it_counts():
    x = torch.tensor([1e-9, -1.0, 0.0])
    before = x.clone()
    for what in ("zero", "nonfinite", "below", "under"):
        count(x, what, 1e-3)
    assert x.equal(before)


def test_shares_are_of_all_entries_of_a_layer():
    layout = Layout(nn.Linear(3, 2))
    assert layer_shares([torch.tensor(3), 1.0], layout).tolist() == [0.5]
