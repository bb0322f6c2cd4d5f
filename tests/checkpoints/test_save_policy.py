import itertools
import math

import pytest

from dynaxx.checkpoints.save_policy import SavePolicy
from dynaxx.errors import BadInput


def simulate(policy, steps, seconds, cost, validation=lambda step: None):
    """Train on a clock of our own; the steps saved at by reason, and the seconds spent and elapsed."""
    policy.begin(0.0)
    now, spent, saves, history = 0.0, 0.0, {}, []
    for step in range(1, steps + 1):
        now += seconds
        if (value := validation(step)) is not None:
            history.append((step, value))
        if (why := policy.due(step, now, history)) is not None:
            now += cost
            spent += cost
            policy.saved(step, now, cost)
            saves.setdefault(why, []).append(step)
    return saves, spent, now


def improving(step):
    return 1 / step if step % 200 == 0 else None


def test_fifty_saves_in_the_first_tenth_then_the_gap_and_the_last():
    saves, _, _ = simulate(SavePolicy(10_000), 10_000, seconds=0.01, cost=1e-3, validation=improving)
    assert saves["early"] == list(range(20, 1001, 20))
    assert saves["safety"] == list(range(1500, 10_000, 500))
    assert saves["last"] == [10_000]
    assert set(saves) == {"early", "safety", "last"}


def test_a_plateau_is_saved_once_patience_is_over():
    def flat_from_3000(step):
        return max(1 - step / 4000, 0.25) if step % 200 == 0 else None

    saves, _, _ = simulate(SavePolicy(10_000), 10_000, seconds=0.01, cost=1e-3, validation=flat_from_3000)
    assert saves["safety"] == [1500, 2000, 2500, 3000]
    # 0.25 is first reached at 3000; at 3399 the evaluations of the last 400 steps still include it.
    assert saves["plateau"][0] == 3400
    assert saves["plateau"] == list(range(3400, 10_000, 400))


@pytest.mark.parametrize(
    ("values", "flat"),
    [
        ([1.0, 1.0], True),
        ([1.0, 1.0 - 0.9e-4], True),
        ([1.0, 1.0 - 1.1e-4], False),
        ([-1.0, -1.0 - 0.9e-4], True),
        ([-1.0, -1.0 - 1.1e-4], False),
        ([1.0, math.nan], True),
        ([math.nan, 1.0], False),  # nothing to compare with
        ([0.5, 0.9], True),
    ],
)
def test_the_threshold_is_relative(values, flat):
    policy = SavePolicy(1000, early_saves=0, patience=100, gap=1000)
    policy.begin(0.0)
    history = [(100, values[0]), (250, values[1])]
    assert policy.due(300, 3.0, history) == ("plateau" if flat else None)
    assert policy.due(99, 3.0, history) is None


def test_without_evaluations_in_the_window_there_is_no_plateau():
    policy = SavePolicy(1000, early_saves=0, patience=100, gap=1000)
    policy.begin(0.0)
    assert policy.due(300, 3.0, [(100, 1.0), (150, 1.0)]) is None
    assert policy.due(300, 3.0, [(250, 1.0)]) is None


@pytest.mark.parametrize("cost", [0.001, 0.1, 1.0, 20.0])
@pytest.mark.parametrize("share", [0.01, 0.05])
def test_saving_takes_no_more_than_its_share(cost, share):
    policy = SavePolicy(5000, share=share)
    saves, spent, now = simulate(policy, 5000, seconds=0.1, cost=cost, validation=lambda step: 1.0)
    assert spent - cost <= share * now + cost  # all but the last; the first is taken before its price is known
    assert saves["last"] == [5000]


def test_safety_saves_come_at_youngs_interval():
    policy = SavePolicy(1_000_000, early_saves=0, gap=1_000_000, failures=20_000.0, share=0.05)
    saves, _, _ = simulate(policy, 20_000, seconds=1.0, cost=10.0)
    first, *rest = saves["safety"]
    assert first == 600  # nothing is timed yet
    # sqrt(2 * 10 s * 20 000 s) = 632.5 s, beyond the 400 s that the share asks for
    assert {b - a for a, b in itertools.pairwise([first, *rest])} == {633}


def test_the_share_delays_what_young_would_do():
    policy = SavePolicy(1_000_000, early_saves=0, gap=1, failures=20_000.0, share=0.01)
    saves, _, _ = simulate(policy, 20_000, seconds=1.0, cost=10.0)
    steps = saves["safety"]
    assert steps[0] == 1
    assert {b - a for a, b in itertools.pairwise(steps)} == {2000}


def test_it_decides_nothing_twice_and_changes_nothing_by_deciding():
    policy = SavePolicy(1000)
    policy.begin(0.0)
    before = policy.state_dict(5.0)
    assert policy.due(20, 5.0) == policy.due(20, 5.0) == "early"
    assert policy.state_dict(5.0) == before
    policy.saved(20, 5.0, 0.0)
    assert policy.due(20, 5.0) is None
    assert policy.due(0, 5.0) is None


def test_of_unknown_length_every_hundred_steps():
    saves, _, _ = simulate(SavePolicy(None), 1000, seconds=0.01, cost=1e-3)
    assert saves == {"safety": list(range(100, 1001, 100))}


def test_a_resumed_policy_goes_on_as_the_one_that_was_not_interrupted():
    whole = SavePolicy(1000, share=0.02)
    expected, _, _ = simulate(whole, 1000, seconds=0.5, cost=0.75)

    first = SavePolicy(1000, share=0.02)
    second = SavePolicy(1000, share=0.02)
    first.begin(0.0)
    now, saves, policy = 0.0, {}, first
    for step in range(1, 1001):
        now += 0.5
        why = policy.due(step, now)
        if why is not None:
            now += 0.75
            policy.saved(step, now, 0.75)
            saves.setdefault(why, []).append(step)
        if step == 77:  # another process, whose clock shows something else
            second.load_state_dict(policy.state_dict(now))
            policy, now = second, 123_456.0
            policy.begin(now)
    assert saves == expected


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"share": 0.0}, {"share": 1.0}, {"patience": 0}, {"gap": 0}, {"threshold": 1.0}, {"failures": 0.0}],
)
def test_bad_arguments_are_named(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        SavePolicy(**{"steps": 100, **wrong})
