"""Signals that read what the loop shows: clipping, rates, epochs, batches, times."""

import math

import psutil
import pytest
import torch
from torch import nn

from dynaxx.core.events import StepBatch, StepTimes
from dynaxx.core.rates import RateFactors
from dynaxx.errors import NotApplicable
from dynaxx.signals.flops import Flops


@pytest.fixture
def measured(bench):
    """One step of a small model with the facts given → column → value."""

    def measured(name, optimizer=None, **facts):
        model = nn.Linear(2, 1)
        found = bench(model, optimizer or torch.optim.SGD(model.parameters(), lr=0.1), name)
        return {k: v.tolist() for k, v in found.step(**facts).items()}

    return measured


@pytest.mark.parametrize("threshold", [0.5, 3.0, math.inf])
def test_the_clip_coefficient_is_the_factor_that_clipping_applied(small, backward, bench, threshold):
    backward(small)
    before = small.head.weight.grad.clone() * 1e3
    small.head.weight.grad.mul_(1e3)
    total = nn.utils.clip_grad_norm_(small.parameters(), threshold)
    applied = float((small.head.weight.grad / before).mean())
    assert (applied < 1) == (float(total) > threshold)
    found = bench(small, torch.optim.SGD(small.parameters(), lr=0.1), "clip_coefficient")
    value = found.step(clip=(total, threshold))["clip_coefficient"]
    assert float(value) == pytest.approx(applied, rel=1e-6)


def test_a_loop_that_does_not_clip_has_no_coefficient(measured):
    assert measured("clip_coefficient") == {}


def rates(*values):
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": value} for value in values])


def test_rates_are_kept_exactly_by_group(measured):
    assert measured("lr", rates(0.1, 1e-7, 3.0)) == {"lr": [0.1, 1e-7, 3.0]}
    assert measured("lr", rates(0.1)) == {"lr": [0.1]}


def test_the_actuators_factor_is_in_the_rates_and_beside_them(measured):
    assert measured("lr", rates(0.1, 0.2), rates=RateFactors(reactive=0.5)) == {"lr": [0.05, 0.1], "lr.factor": 0.5}


def test_rates_that_are_tensors(measured):
    values = measured(
        "lr", rates(torch.tensor(0.1), 0.3, torch.tensor([0.2], dtype=torch.float64)), rates=RateFactors(reactive=0.5)
    )
    assert values["lr"] == pytest.approx([float(torch.tensor(0.1)) / 2, 0.15, 0.1], rel=1e-15)


def test_a_rate_that_changes_later_does_not_change_what_was_measured(bench):
    rate = torch.tensor(0.1)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    found = bench(model, optimizer, "lr")
    view = found.begin()
    (measurement,) = found.signals["lr"].measure(found.states["lr"], view)[1]
    rate.fill_(9.0)
    assert measurement.value.tolist() == pytest.approx([0.1])


def test_groups_that_are_added_get_entries_of_their_own(bench):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    found = bench(model, optimizer, "lr")
    assert found.step()["lr"].tolist() == [0.1]
    one = found.columns["lr"]
    optimizer.add_param_group({"params": [model.bias], "lr": 0.2})
    assert found.step()["lr"].tolist() == [0.1, 0.2]
    assert found.columns["lr"].axis.labels == ("group 0", "group 1")
    assert one.axis.labels == ("group 0",)
    found.step()
    assert one.dtype == "float64"


def test_an_optimizer_without_a_rate_has_no_row(bench):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adadelta(model.parameters())
    del optimizer.param_groups[0]["lr"]
    found = bench(model, optimizer, "lr")
    assert found.measure(found.signals["lr"].at, found.begin()) == {}


def test_the_epoch_is_that_of_the_batches(measured):
    assert measured("epoch") == {}
    assert measured("epoch", batch=StepBatch(epoch=2.375)) == {"epoch": 2.375}


def test_the_effective_batch_is_over_accumulation_and_ranks(measured):
    assert measured("effective_batch") == {}
    assert measured("effective_batch", batch=StepBatch(samples=24), world_size=4) == {"effective_batch": 96}


def test_times_and_rates_of_a_step(measured):
    times = StepTimes(data=0.1, forward=0.2, backward=0.3, optimizer=0.05, measuring=0.01, total=0.8)
    values = measured("system", times=times, batch=StepBatch(samples=16, tokens=400), world_size=2)
    memory = values.pop("system.memory_host")
    assert memory == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert values == pytest.approx(
        {
            "system.data_seconds": 0.1,
            "system.forward_seconds": 0.2,
            "system.backward_seconds": 0.3,
            "system.optimizer_seconds": 0.05,
            "system.measuring_seconds": 0.01,
            "system.step_seconds": 0.8,
            "system.samples_per_second": 40,
            "system.tokens_per_second": 1000,
        }
    )
    assert "system.tokens_per_second" not in measured("system", times=times, batch=StepBatch(samples=16))
    assert "system.samples_per_second" not in measured("system", times=times)


def test_operations_per_second_are_three_forwards(measured):
    facts = {"times": StepTimes(total=0.5), "batch": StepBatch(samples=8, flops_per_sample=1000.0), "world_size": 2}
    assert measured("flops", **facts) == {"flops": 3 * 1000 * 8 * 2 / 0.5}
    assert measured("flops", times=StepTimes(total=0.5)) == {}


def test_utilisation_is_the_share_of_all_peaks(bench):
    model = nn.Linear(2, 1)
    found = bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "flops")
    found.states["flops"] = 96_000.0
    facts = {"times": StepTimes(total=0.5), "batch": StepBatch(samples=8, flops_per_sample=1000.0), "world_size": 2}
    assert float(found.step(**facts)["flops.utilisation"]) == 0.5


def test_operations_inside_a_compiled_model_are_not_counted(bench):
    model = torch.compile(nn.Linear(2, 1), backend="eager")
    with pytest.raises(NotApplicable, match="compiled model"):
        bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "flops")
    assert Flops().init(nn.Linear(2, 1), bench(nn.Linear(2, 1), None).layout) is None
