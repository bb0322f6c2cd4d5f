"""The budget's arithmetic, against figures by hand."""

import math

import pytest

from dynaxx.core.records import Cost
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.survey.budget import SHARES, Budget, passes


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf])
def test_no_budget_is_bad_input(bad):
    with pytest.raises(BadInput, match="positive and finite"):
        Budget(bad)
    with pytest.raises(BadInput, match="share above 0"):
        Budget.of_training(1000, share=bad)


def test_share_of_the_training_and_its_floor():
    assert Budget.of_training(10_000).passes == 1000
    assert Budget.of_training(10_000, accumulate=4).passes == 4000
    assert Budget.of_training(100).passes == 300
    assert Budget.of_training(100, floor=0).passes == 10
    assert Budget.of_training(1000, share=0.5).passes == 500


def test_a_backward_is_two_forwards_and_a_product_two_passes():
    assert passes(Cost(forwards=300)) == pytest.approx(100)
    assert passes(Cost(backwards=300)) == pytest.approx(200)
    assert passes(Cost(forwards=1, backwards=1, products=1), batches=5) == pytest.approx(15)
    with pytest.raises(BadInput, match="batches"):
        passes(Cost(forwards=1), batches=-1)


def test_grants_never_exceed_what_is_free():
    budget = Budget(100)
    assert budget.grant("a", 0.7) == 70
    assert budget.grant("b", 0.7) == 30
    with pytest.raises(NotApplicable, match="nothing is left"):
        budget.grant("c", 0.1)
    budget.spend("a", Cost(forwards=20, backwards=20))
    assert budget.close("a") == 50
    assert budget.free == 50
    assert budget.grant("c", 0.1) == 10
    assert budget.grant("c", 0.1) == 20  # a second grant adds to the first
    assert budget.left == 80


def test_overspending_is_counted_and_shown():
    budget = Budget(100)
    budget.grant("a", 0.5)
    budget.spend("a", Cost(forwards=120, backwards=120))
    assert budget.left == -20
    assert budget.free == -20
    assert budget.close("a") == 0
    assert "over its grant" in budget.summary()
    assert "120 of 100 passes" in str(budget)
    assert "a forward and a backward over one training batch" in str(budget)
    with pytest.raises(NotApplicable):
        budget.grant("b", 0.1)


@pytest.mark.parametrize("share", [0, -0.1, 1.1])
def test_share_out_of_range(share):
    with pytest.raises(BadInput, match=r"\(0, 1\]"):
        Budget(10).grant("a", share)


def test_the_first_split_is_whole():
    assert math.fsum(SHARES.values()) == pytest.approx(1.0)


def test_what_a_closed_grant_has_left_is_not_promised_twice():
    budget = Budget(300)
    assert budget.grant("spectrum", 0.2) == 60
    budget.close("spectrum")
    budget.spend("other", Cost(forwards=200, backwards=200))
    budget.close("other")
    assert budget.grant("spectrum", 1.0) == pytest.approx(100)
    assert budget.free == pytest.approx(0, abs=1e-9)
