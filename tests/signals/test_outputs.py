import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from dynaxx.core.events import Event


class Returns(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.form = form

    def forward(self, x):
        return self.form(x)


@pytest.fixture
def measured(bench):
    def measured(*outputs, form=lambda x: x):
        model = Returns(form)
        found = bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "outputs")
        for x in outputs:
            found.look(x)
        values = found.measure(Event.STEP_END, found.begin())
        again = found.measure(Event.STEP_END, found.begin())
        assert all(math.isnan(value) for value in again.values()), "the buffers begin anew"
        return {name: float(value) for name, value in values.items()}

    return measured


def logits(*shape, scale=2.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_loss_of_a_guess_is_the_mean_cross_entropy_over_all_labels(measured):
    z = logits(6, 4, 10)
    flat = z.reshape(-1, 10).double()
    every = torch.stack([functional.cross_entropy(flat, torch.full((24,), c)) for c in range(10)]).mean()
    found = measured(z)
    assert found["outputs.guess_loss"] == pytest.approx(float(every), rel=1e-5)
    assert found["outputs.width"] == 10
    assert found["outputs.normalised"] == 0


def test_indifferent_outputs_lose_ln_c(measured):
    assert measured(torch.full((5, 7), 3.0))["outputs.guess_loss"] == pytest.approx(math.log(7), rel=1e-6)


def test_the_rows_of_all_forwards_count_alike(measured):
    one, other = logits(2, 10), logits(6, 10, scale=9)
    together = measured(torch.cat([one, other]))
    assert measured(one, other)["outputs.guess_loss"] == pytest.approx(together["outputs.guess_loss"], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_probabilities_are_recognised(measured, dtype):
    z = logits(200, 10)
    assert measured(z.softmax(-1).to(dtype))["outputs.normalised"] == 1
    assert measured(z.log_softmax(-1))["outputs.normalised"] == 0
    assert measured(z.sigmoid())["outputs.normalised"] == 0
    mixed = torch.cat([z.softmax(-1), z])
    assert measured(mixed)["outputs.normalised"] == 0.5


def test_the_top_class_has_the_largest_mean_probability(measured):
    z = torch.zeros(4, 5)
    z[:3, 2] = 10.0
    share = (3 * math.exp(10) / (math.exp(10) + 4) + 0.2) / 4
    found = measured(z)
    assert found["outputs.top_class"] == 2
    assert found["outputs.top_share"] == pytest.approx(share, rel=1e-5)
    assert measured(z.softmax(-1))["outputs.top_share"] == pytest.approx(share, rel=1e-5), "not normalised twice"


def test_named_logits_are_read_and_other_outputs_say_nothing(measured):
    z = logits(3, 10)
    named = measured(z, form=lambda x: {"hidden": x * 9, "logits": x})
    assert named["outputs.guess_loss"] == measured(z)["outputs.guess_loss"]
    assert all(math.isnan(value) for value in measured(z, form=lambda x: x.sum()).values())
