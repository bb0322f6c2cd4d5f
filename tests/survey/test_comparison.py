"""Optimizers compared seed by seed: leads that are there are found, leads that are none are not."""

import math

import numpy as np
import pytest

from dynaxx.survey.comparison import CHANCE, lead
from dynaxx.survey.member import Member
from dynaxx.survey.results import Result


def ended(losses, *, diverged=()):
    return [
        Result(member=Member(task="digits", steps=1, seed=i), folder="", final=float(loss), diverged=i in diverged)
        for i, loss in enumerate(losses)
    ]


def test_the_seeds_own_level_does_not_count():
    """Differences of 0.2 and 0.16, whatever the seeds: Student's t with one degree of freedom, 0.18 / 0.02 = 9."""
    gap, chance = lead(ended([5.0, 1.0]), ended([4.8, 0.84]))
    assert (gap.value, gap.error) == (pytest.approx(0.18), pytest.approx(0.02))
    assert chance == pytest.approx(0.5 - math.atan(9) / math.pi, rel=1e-6)
    assert chance < CHANCE
    assert lead(ended([4.8, 0.84]), ended([5.0, 1.0]))[1] > 0.9


def test_a_lead_needs_two_seeds_of_both_that_did_not_diverge():
    assert lead(ended([2.0]), ended([1.0]))[1] == 1
    assert lead(ended([2.0, 2.0]), ended([1.0, 1.1], diverged=(1,)))[1] == 1
    assert lead(ended([2.0, 2.0], diverged=(0,)), ended([1.0, 1.1]))[1] == 1


@pytest.mark.parametrize("seeds", [2, 3])
def test_chance_is_called_ahead_as_often_as_is_said(seeds: int):
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(1000, 2, seeds))
    found = np.mean([lead(ended(a), ended(b))[1] <= CHANCE for a, b in draws])
    assert found == pytest.approx(CHANCE, abs=0.03)  # three standard errors of a thousand draws
