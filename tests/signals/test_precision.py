import pytest
import torch
from torch import nn

from dynaxx.core.events import StepBatch

TINY = 2.0**-14
"""Smallest normal number of float16."""


@pytest.fixture
def measured(bench):
    """Underflow of a gradient in a step with the facts given."""

    def measured(gradient, dtype=torch.float16, **facts):
        model = nn.Linear(len(gradient), 1, bias=False)
        found = bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "precision")
        model.weight.grad = torch.tensor([gradient])
        values = found.step(batch=StepBatch(compute_dtype=dtype), **facts)
        return {name.removeprefix("precision."): v.tolist() for name, v in values.items()}

    return measured


def test_entries_under_the_smallest_normal_are_counted_and_zeros_are_not(measured):
    gradient = [0.0, -0.0, TINY, -TINY, TINY * 0.999, -TINY / 2, 1e-30, 1.0, torch.nan, torch.inf]
    assert measured(gradient)["underflow"] == [3 / 10]
    assert measured(gradient, torch.float32)["underflow"] == [0]
    assert measured([1e-39, 1e-30], torch.bfloat16)["underflow"] == [0.5]


def test_under_a_scaler_unscaled_gradients_are_compared_as_they_were_scaled(measured):
    scale = 2.0**10
    gradient = [TINY / scale, TINY / scale * 0.999, TINY, 1e-12]
    values = measured(gradient, loss_scale=torch.tensor(scale))
    assert values == {"underflow": [0.5], "loss_scale": scale, "skipped": 0}


def test_gradients_that_are_still_scaled_are_compared_as_they_are(measured):
    """A fused optimizer unscales within its own step."""
    scale = torch.tensor(2.0**10)
    gradient = [TINY, TINY * 0.999, 1.0, 1e-12]
    values = measured(gradient, loss_scale=scale, gradient_factor=1 / scale)
    assert values["underflow"] == [0.5]


def test_the_share_is_of_all_entries_of_a_layer(small, backward, bench, layers):
    backward(small, factor=1e-4)
    found = bench(small, torch.optim.SGD(small.parameters(), lr=0.1), "precision")
    value = found.step(batch=StepBatch(compute_dtype=torch.float16))["precision.underflow"].tolist()
    truth = layers.map(small, lambda g: ((g != 0) & (g.abs() < TINY)).double().mean())
    assert value == pytest.approx(truth, abs=1e-12)
    assert max(truth) > 0


def test_skipped_updates_are_those_since_the_last_row(bench):
    model = nn.Linear(2, 1)
    found = bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "precision")
    scale = {"loss_scale": torch.tensor(8.0)}
    assert found.step(skipped=2, **scale)["precision.skipped"] == 2
    assert found.step(skipped=2, **scale)["precision.skipped"] == 0
    assert found.step(skipped=5, **scale)["precision.skipped"] == 3
    assert "precision.skipped" not in found.step(skipped=5)
    assert found.step(skipped=6)["precision.skipped"] == 1
