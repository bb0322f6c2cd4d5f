import pytest
import torch
from torch import nn

from dynaxx.core.events import Event


@pytest.fixture
def shares(bench):
    def shares(model):
        found = bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "unit_symmetry")
        values = found.measure(Event.GRADS_READY, found.begin())["unit_symmetry"]
        return dict(zip([layer.name for layer in found.layout.layers], values.tolist(), strict=True))

    return shares


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.Linear(8, 4), nn.Embedding(30, 4), nn.Conv2d(3, 6, 3))


def test_random_units_are_all_different(shares):
    assert set(shares(net()).values()) == {0.0}


def test_equal_units_are_counted(shares):
    model = net()
    with torch.no_grad():
        model[0].weight[1] = model[0].weight[5]
        model[0].weight[7] = model[0].weight[5]
        model[2].weight.fill_(0.3)
        model[3].weight.zero_()
        model[4].weight[2] = model[4].weight[0]
    found = shares(model)
    assert found["0"] == 3 / 8
    assert found["2"] == 1
    assert found["3"] == 0, "rows of an embedding are no units"
    assert found["4"] == pytest.approx(2 / 6)


def test_units_that_differ_by_more_than_rounding_are_different(shares):
    model = nn.Sequential(nn.Linear(50, 6))
    with torch.no_grad():
        model[0].weight.fill_(0.5)
        assert shares(model)["0"] == 1
        model[0].weight += 1e-3 * torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    assert shares(model)["0"] == 0


def test_equal_units_stay_equal_in_training_and_noise_parts_them(shares):
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    for layer in (model[0], model[2]):
        nn.init.constant_(layer.weight, 0.2)
        nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(5):
        x = torch.randn(16, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x[:, :1]).square().mean().backward()
        optimizer.step()
    assert shares(model)["0"] == 1
    with torch.no_grad():
        model[0].weight += 0.01 * torch.randn(4, 5, generator=torch.Generator().manual_seed(9))
    assert shares(model)["0"] == 0
