"""The scan on bowls, whose answers are known."""

import json
from pathlib import Path

import numpy as np
import pytest

from dynaxx.core.chart import Chart
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.survey.engines import Engine
from dynaxx.survey.engines._engine import work
from dynaxx.survey.sensitivity import grid, sensitivity

TASKS = Path(__file__).with_name("fleet_tasks.py")


class Here(Engine):
    def run(self, jobs):
        for job in jobs:
            yield work(job)


def bowl_loss(rate: float, steps: int) -> float:
    return 0.5 * sum(h * (1 - rate * h) ** (2 * steps) for h in (1.0, 2.0, 4.0))


def test_a_bowl(tmp_path):
    factors = grid(centre=1.0, decades=2.5, per_decade=4)
    chart = sensitivity(f"{TASKS}:Bowl", tmp_path, rates=factors, seeds=(0, 1), steps=6, engine=Here())
    rates = 0.1 * np.array(factors)
    truth = np.array([bowl_loss(rate, 6) for rate in rates])
    np.testing.assert_allclose(chart.arrays["learning_rates"], rates, rtol=1e-12)
    np.testing.assert_allclose(chart.arrays["final_loss"], [truth, truth], rtol=1e-3)
    assert chart["curvature"] == pytest.approx(73 / 21, rel=1e-3)  # gᵀHg / ‖g‖² with g = h = (1, 2, 4)
    # The loss rises where |1 − 4 η| is over 1 by more than the other two fall: found by its closed form.
    assert chart["divergence_low"] == pytest.approx(rates[truth <= 3.5].max())
    assert chart["divergence_high"] == pytest.approx(rates[truth > 3.5].min())
    best = rates[truth.argmin()]
    assert best / 10**0.25 <= chart["learning_rate"] <= best * 10**0.25
    assert chart["learning_rate_low"] <= chart["learning_rate"] <= chart["learning_rate_high"]
    assert chart["rate"] == pytest.approx(chart["learning_rate"] / 0.1)
    assert chart.cost.backwards == len(factors) * 2 * 6
    again = Chart.from_dict(json.loads(json.dumps(chart.to_dict())))
    assert again["sensitivity"] == pytest.approx(chart["sensitivity"])
    assert chart.plot().axes


def test_the_rate_is_that_of_the_schedule_s_peak(tmp_path):
    chart = sensitivity(f"{TASKS}:Noisy", tmp_path, rates=(0.5, 1.0, 2.0), seeds=(0, 1, 2), steps=20, engine=Here())
    np.testing.assert_allclose(chart.arrays["learning_rates"], [0.025, 0.05, 0.1], rtol=0.05)
    assert chart.values["sensitivity"].error is not None


@pytest.mark.parametrize(
    ("task", "rates", "words"),
    [
        ("Constant", (0.1, 1.0, 10.0), "lowered the loss"),
        ("Explodes", (0.1, 1.0, 10.0), "Every training diverged"),
        ("Raises", (0.1, 1.0, 10.0), "the user's own error"),
    ],
)
def test_nothing_to_say(tmp_path, task, rates, words):
    with pytest.raises(NotApplicable, match=words):
        sensitivity(f"{TASKS}:{task}", tmp_path, rates=rates, seeds=(0,), steps=4, engine=Here())


def test_edge_one_seed_and_no_divergence_are_said(tmp_path):
    chart = sensitivity(f"{TASKS}:Bowl", tmp_path, rates=(0.01, 0.1, 1.0), seeds=(0,), steps=4, engine=Here())
    said = " ".join(chart.notes)
    assert "highest of the grid" in said
    assert "One seed" in said
    assert "No training diverged" in said
    assert "divergence" not in chart.values


@pytest.mark.parametrize(
    ("change", "word"),
    [({"rates": (1.0, 2.0)}, "rates"), ({"rates": (2.0, 1.0, 3.0)}, "increasing"), ({"seeds": ()}, "seeds"),
     ({"seeds": (0, 0)}, "seeds"), ({"rates": (-1.0, 1.0, 2.0)}, "rate")],
)  # fmt: skip
def test_bad_input(tmp_path, change, word):
    with pytest.raises(BadInput, match=word):
        sensitivity("digits", tmp_path, **change)


def test_the_grid():
    assert grid(decades=2, per_decade=1) == pytest.approx((0.1, 1.0, 10.0))
    assert grid(centre=3.0)[len(grid()) // 2] == 3.0
    assert len(grid()) == 7
    with pytest.raises(BadInput, match="three factors"):
        grid(decades=0.5, per_decade=1)
    with pytest.raises(BadInput, match="positive"):
        grid(centre=0)
