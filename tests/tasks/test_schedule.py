import math

import pytest
import torch

from dynaxx.tasks._schedule import warmup_cosine


def curve(steps, warmup, final, taken):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = warmup_cosine(optimizer, steps=steps, warmup=warmup, final=final)
    rates = []
    for _ in range(taken):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_known_points():
    rates = curve(steps=12, warmup=4, final=0.1, taken=15)
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[8] == pytest.approx(2 * (0.1 + 0.9 / 2))  # half-way down
    assert rates[6] == pytest.approx(2 * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2))  # a quarter
    assert rates[12:] == pytest.approx([0.2, 0.2, 0.2])


def test_a_plan_of_nothing_but_warm_up():
    assert curve(steps=1, warmup=1, final=0.0, taken=3) == [2.0, 2.0, 0.0]
