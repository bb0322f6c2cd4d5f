import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynaxx.session.cadence import CALIBRATION, SETTLED, SLOWEST, cadences

seconds = st.floats(1e-7, 1e-1)


def room(fixed, step, budget):
    """What the signals that have a cadence may take of each step: what is left, at least a quarter of the budget."""
    return max(budget * step - fixed, budget * step / 4)


def spent(costs, plan):
    return sum(cost / plan[name] for name, cost in costs.items())


def named(costs):
    return {f"s{i}": cost for i, cost in enumerate(costs)}


@settings(deadline=None, max_examples=200)
@given(
    costs=st.lists(seconds, min_size=1, max_size=8),
    fixed=st.floats(0, 1e-2),
    step=st.floats(1e-4, 1),
    budget=st.floats(0.001, 0.5),
)
def test_cadences_are_powers_of_two_that_keep_to_the_budget(costs, fixed, step, budget):
    plan = cadences(named(costs), fixed, step, budget)
    assert plan.keys() == named(costs).keys()
    for k in plan.values():
        assert isinstance(k, int)
        assert 1 <= k <= SLOWEST
        assert k & (k - 1) == 0
    if max(plan.values()) < SLOWEST:  # at the slowest, what it costs is accepted
        assert spent(named(costs), plan) <= room(fixed, step, budget) * (1 + 1e-9)


@settings(deadline=None, max_examples=60)
@given(costs=st.lists(st.floats(1e-4, 1e-2), min_size=1, max_size=3), budget=st.floats(1e-3, 1e-2))
def test_no_other_cadences_know_much_more_for_the_price(costs, budget):
    """The mean age Σk against the best of all combinations of powers of two: within the factor 2 of rounding up."""
    plan = cadences(named(costs), 0.0, 1.0, budget)
    if max(plan.values()) == SLOWEST:
        return
    powers = [2**i for i in range(int(math.log2(SLOWEST)) + 1)]
    allowed = (
        ks
        for ks in itertools.product(powers, repeat=len(costs))
        if spent(named(costs), dict(zip(named(costs), ks, strict=True))) <= budget
    )
    best = min(sum(ks) for ks in allowed)
    assert sum(plan.values()) < 2 * best + len(costs)


@pytest.mark.parametrize("scale", [1, 4, 64])
def test_a_signal_of_four_times_the_price_is_measured_half_as_often(scale):
    plan = cadences({"dear": 4e-3, "cheap": 1e-3}, 0.0, 1.0, 3e-3 / scale)
    assert plan == {"dear": 2 * scale, "cheap": scale}


def test_a_price_met_exactly_is_not_rounded_up():
    assert cadences({"a": 0.02}, 0.0, 1.0, 0.02) == {"a": 1}
    assert cadences({"a": 0.08}, 0.0, 1.0, 0.02) == {"a": 4}
    assert cadences({"a": 0.0801}, 0.0, 1.0, 0.02) == {"a": 8}


def test_what_every_step_costs_leaves_a_quarter_of_the_budget_at_least():
    costs = {"a": 0.08}
    assert cadences(costs, 0.015, 1.0, 0.02) == cadences(costs, 0.018, 1.0, 0.02) == {"a": 16}
    assert cadences(costs, 99.0, 1.0, 0.02) == {"a": 16}
    assert cadences(costs, 0.010, 1.0, 0.02) == {"a": 8}
    assert cadences(costs, 0.005, 1.0, 0.025) == {"a": 4}


def test_no_signal_goes_blind():
    assert cadences({"a": 1e9, "b": 1e-9}, 0.0, 1e-3, 0.02)["a"] == SLOWEST
    assert cadences({"a": 1.0}, 0.0, 0.0, 0.02) == {"a": SLOWEST}


def test_a_signal_that_costs_nothing_is_measured_each_step():
    assert cadences({"a": 0.0, "b": 0.08}, 0.0, 1.0, 0.02) == {"a": 1, "b": 4}
    assert cadences({}, 0.0, 1.0, 0.02) == {}


def test_the_slowest_is_a_power_of_two_and_the_calibration_is_longer_than_its_beginning():
    assert SLOWEST & (SLOWEST - 1) == 0
    assert 0 < SETTLED < CALIBRATION
