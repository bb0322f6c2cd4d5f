"""What the arms of a trial train on, and how the winner stays."""

import pytest

from dynaxx.core.records import Action
from dynaxx.errors import NotApplicable
from dynaxx.session.arms import divided, scaled
from dynaxx.session.remedies import NotYet


def test_arms_are_judged_on_batches_that_none_has_trained_on():
    train, held = divided(list(range(30)), 20, (), 100)
    assert train == list(range(20))
    assert held == list(range(22, 30))


def test_an_epoch_that_ends_comes_around_again():
    train, held = divided(list(range(20)), 15, (), 20)
    assert train == [*range(12), 0, 1, 2]
    assert held == list(range(12, 20))
    train, held = divided(list(range(10)), 15, tuple("abcdefgh"), 20)
    assert train == [*range(10), *range(5)]
    assert held == list("abcdefgh")


def test_too_few_batches_wait_for_the_next_epoch_or_are_refused():
    with pytest.raises(NotYet):
        divided(list(range(5)), 15, (), 30)
    with pytest.raises(NotYet):
        divided(list(range(10)), 10, ("a", "b"), 30)  # two batches could prove nothing
    for length in (5, None):
        with pytest.raises(NotApplicable, match="5 batches are left in this epoch: too few for 15 steps"):
            divided(list(range(5)), 15, (), length)


def test_the_winner_stays_with_a_margin():
    rate = Action(name="learning_rate", arguments={"factor": 0.3}, reason="the best")
    assert scaled(rate, 1.0) is rate
    assert scaled(rate, 1 / 3).arguments == {"factor": 0.1}
    clip = Action(name="adaptive_clip")
    assert scaled(clip, 1 / 3) is clip
