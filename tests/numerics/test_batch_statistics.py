import numpy as np
import pytest
import torch
from torch import nn

from dynaxx.core.objective import Objective
from dynaxx.numerics.batch_statistics import Moments, layers_with, renewed, rescaled, unit_statistics
from dynaxx.numerics.symmetry import state


def test_moments_are_those_of_everything_at_once():
    values = 1e4 + torch.randn(7, 3, 5, dtype=torch.float64)
    moments = Moments(1)
    for part in (values[:2], values[2:3], values[3:]):
        moments.add(part)
    rows = values.movedim(1, -1).reshape(-1, 3).numpy()
    np.testing.assert_allclose(moments.mean.numpy(), rows.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.deviation().numpy(), rows.std(0), rtol=1e-10)


def test_renewed_statistics_of_the_first_layer_are_exact():
    """What comes into the first normalisation does not depend on any; ragged batches count by their examples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 5), nn.BatchNorm1d(5)).eval()
    x = torch.randn(50, 3)
    objective = Objective(model, lambda m, b: m(b).square().mean(), [x[:30], x[30:]])
    here = state(objective)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = renewed(objective, here)
    inner = model[0](x).detach().double()
    torch.testing.assert_close(found["1.running_mean"].double(), inner.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["1.running_var"].double(), inner.var(0), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m.training for m in model.modules())
    one = Objective(model, lambda m, b: m(b).square().mean(), [x])  # of one batch, all layers are exact
    found = renewed(one, here)
    expected = model[3](model[2](torch.nn.functional.batch_norm(
        model[0](x), None, None, model[1].weight, model[1].bias, training=True))).detach()  # fmt: skip
    torch.testing.assert_close(found["4.running_mean"], expected.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["4.running_var"], expected.var(0), rtol=1e-4, atol=1e-6)


def test_a_model_without_statistics_is_left():
    model = nn.Linear(2, 2)
    objective = Objective(model, lambda m, b: m(b).mean(), [torch.ones(2, 2)])
    here = state(objective)
    assert all(renewed(objective, here)[k] is t for k, t in here.items())


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_units_are_rescaled_to_what_is_wanted(kind):
    torch.manual_seed(0)
    if kind == "linear":
        model, x, dims = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)), torch.randn(40, 3), (0,)
    else:
        model, x, dims = (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 1)),
            torch.randn(9, 3, 6, 6),
            (0, 2, 3),
        )
    seen = []

    def loss(m, b):
        out = m(b)
        seen.append(out.detach())
        return out.square().mean()

    objective = Objective(model, loss, [x])
    here = state(objective)
    layers = layers_with(objective, ["0.weight", "2.weight"])
    assert list(layers) == ["0", "2"]
    first = unit_statistics(objective, here, layers)
    torch.testing.assert_close(first["2"][0].float(), seen[-1].mean(dims), rtol=1e-4, atol=1e-6)
    goal = {path: (mean + 1, 3 * deviation) for path, (mean, deviation) in first.items()}
    with rescaled(objective, here, layers, goal):
        seen.clear()
        objective.value()
    torch.testing.assert_close(seen[0].mean(dims), goal["2"][0].float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[0].std(dims, correction=0), goal["2"][1].float(), rtol=1e-4, atol=1e-5)
    assert not any(m._forward_hooks for m in model.modules())
