import math

import pytest
import torch
from torch import nn

from dynaxx.core.events import Event


class Takes(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, *more):
        return self.weight * 1.0


@pytest.fixture
def measured(bench):
    def measured(*batches):
        model = Takes()
        found = bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "inputs")
        for batch in batches:
            found.look(*batch) if isinstance(batch, tuple) else found.look(batch)
        values = found.measure(Event.STEP_END, found.begin())
        again = found.measure(Event.STEP_END, found.begin())
        assert all(math.isnan(value) for value in again.values()), "the buffers begin anew"
        return {name: float(value) for name, value in values.items()}

    return measured


def test_statistics_over_all_forwards_of_a_step(measured):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 3, generator=generator) * 5 + 2 for n in (4, 9)]
    x = torch.cat([batch.flatten() for batch in batches]).double()
    found = measured(*batches)
    assert found["inputs.mean"] == pytest.approx(float(x.mean()), rel=1e-5)
    assert found["inputs.std"] == pytest.approx(float(x.std(correction=0)), rel=1e-5)
    assert found["inputs.max"] == pytest.approx(float(x.abs().max()), rel=1e-6)
    assert found["inputs.nonfinite"] == 0


def test_the_spread_beside_a_large_mean_is_not_lost(measured):
    x = 1e4 + torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    assert measured(x)["inputs.std"] == pytest.approx(1.0, rel=1e-3)


def test_values_that_are_not_finite_are_counted_and_left_out(measured):
    found = measured(torch.tensor([[1.0, 3.0, torch.nan, -torch.inf]]))
    assert found["inputs.nonfinite"] == 0.5
    assert found["inputs.mean"] == 2
    assert found["inputs.max"] == 3


def test_integers_have_a_fingerprint_and_no_scale(measured):
    found = measured(torch.arange(20).reshape(4, 5))
    assert math.isnan(found["inputs.mean"])
    assert math.isnan(found["inputs.std"])
    assert found["inputs.fingerprint"] != 0


@pytest.mark.parametrize("kind", [torch.float32, torch.int64])
def test_equal_batches_share_a_fingerprint_and_others_do_not(measured, kind):
    x = (torch.randn(64, 50, generator=torch.Generator().manual_seed(1)) * 9).to(kind)
    mark = measured(x)["inputs.fingerprint"]
    assert measured(x.clone())["inputs.fingerprint"] == mark
    other = x.clone()
    other[3, 7] += 1
    swapped = x[torch.randperm(64, generator=torch.Generator().manual_seed(2))]
    assert measured(other)["inputs.fingerprint"] != mark
    assert measured(swapped)["inputs.fingerprint"] != mark, "the order counts"


def test_a_large_batch_is_told_apart_by_some_of_its_entries(measured):
    x = torch.randn(300, 1000, generator=torch.Generator().manual_seed(3))
    assert measured(x)["inputs.fingerprint"] != measured(x.flip(0))["inputs.fingerprint"]


def test_the_first_tensor_is_looked_at(measured):
    assert measured((torch.full((2, 2), 3.0), torch.zeros(9)))["inputs.mean"] == 3
