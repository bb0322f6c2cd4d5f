import math

import pytest
import torch
from torch import nn

from dynaxx.core.events import Event


class Returns(nn.Module):
    """Returns what it is given, in a form of its own."""

    def __init__(self, form=lambda x: x):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.form = form

    def forward(self, x):
        return self.form(x)


@pytest.fixture
def measured(bench):
    def measured(*outputs, form=lambda x: x):
        model = Returns(form)
        found = bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "logit_norm")
        for x in outputs:
            found.look(x)
        values = found.measure(Event.STEP_END, found.begin())
        again = found.measure(Event.STEP_END, found.begin())
        assert all(math.isnan(value) for value in again.values()), "the buffers begin anew"
        return float(values["logit_norm"]), float(values["logit_norm.max"])

    return measured


def test_known_outputs(measured):
    assert measured(torch.tensor([[3.0, 4.0], [-5.0, 12.0]])) == (9.0, 12.0)
    assert measured(torch.tensor([[3.0, -4.0], [0.0, 1.0]])) == (3.0, 4.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_are_all_but_the_last_dimension_over_all_forwards(measured, dtype):
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(n, 7, 11, generator=generator).to(dtype) for n in (2, 5)]
    rows = torch.cat([x.double().reshape(-1, 11) for x in outputs])
    norm, largest = measured(*outputs)
    assert norm == pytest.approx(float(rows.norm(dim=1).mean()), rel=1e-5)
    assert largest == pytest.approx(float(rows.abs().max()), rel=1e-7)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: {"hidden": x * 9, "logits": x},
        lambda x: (x, x * 9),
        lambda x: [{"out": x}],
    ],
    ids=["named", "first", "nested"],
)
def test_where_the_logits_are_found(measured, form):
    assert measured(torch.tensor([[3.0, 4.0]]), form=form) == (5.0, 4.0)


@pytest.mark.parametrize(
    "output", [torch.tensor(1.0), torch.ones(4), torch.ones(2, 3, dtype=torch.int64), torch.ones(0, 3)]
)
def test_outputs_that_are_no_logits_have_no_norm(measured, output):
    assert all(math.isnan(value) for value in measured(output))


def test_a_new_measurement_knows_nothing_of_the_last(bench):
    model = Returns()
    found = bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "logit_norm")
    for size in (100.0, 1.0):
        found.look(torch.tensor([[3 * size, -4 * size]]))
        values = found.measure(Event.STEP_END, found.begin())
        assert (float(values["logit_norm"]), float(values["logit_norm.max"])) == (5 * size, 4 * size)
