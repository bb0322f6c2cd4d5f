"""The loop closed on a simulated run: what is planted is repaired, near the clean twin; a clean run is left alone."""

import numpy as np
import pytest

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def clean(nav):
    return [nav.Simulator(mode="off", seed=seed).run() for seed in SEEDS]


def navigated(nav, **planted):
    return [nav.Simulator(seed=seed, **planted).run() for seed in SEEDS]


@pytest.mark.parametrize("mode", ["advise", "act"])
def test_a_clean_run_is_not_touched(nav, clean, mode):
    for twin, run in zip(clean, navigated(nav, mode=mode), strict=True):
        assert run.losses == twin.losses
        assert run.turns
        assert all(t.decisions == () for _, _, t in run.turns)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_advice_alone_repairs_nothing(nav):
    left, advised = (nav.Simulator(factor=30, mode=mode).run() for mode in ("off", "advise"))
    assert not np.isfinite(left.final)
    np.testing.assert_array_equal(list(left.losses.values()), list(advised.losses.values()))
    assert any(d.status == "advised" for _, _, t in advised.turns for d in t.decisions)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_rate_thirty_times_too_high(nav, clean):
    for twin, run in zip(clean, navigated(nav, factor=30), strict=True):
        assert run.final < 5 * max(twin.final, 1e-3)  # both bounce in their noise; untouched it is infinite
        assert run.passes < 1.3 * twin.passes
        assert run.taken[0] == "rollback"


def test_a_rate_thirty_times_too_low(nav, clean):
    untouched = nav.Simulator(factor=1 / 30, mode="off").run()
    for twin, run in zip(clean, navigated(nav, factor=1 / 30), strict=True):
        assert run.final < 2 * max(twin.final, 1e-3) < untouched.final / 20
        factors = [a.arguments["factor"] for a in run.actions("learning_rate")]
        assert factors == sorted(factors)
        assert factors[-1] <= 30


def test_one_bad_batch(nav, clean):
    planted = {"bad": {300: 3000.0}}
    for twin, run in zip(clean, navigated(nav, **planted), strict=True):
        assert nav.Simulator(mode="off", **planted).run().final > 50 * twin.final
        assert run.final < 2 * max(twin.final, 1e-3)
        assert run.taken == ["rollback"]
        assert run.passes <= twin.passes + 30


def test_bad_batches_again_and_again(nav, clean):
    for twin, run in zip(clean, navigated(nav, bad={200: 3000.0, 300: 3000.0, 400: 3000.0}), strict=True):
        assert run.final < 2 * max(twin.final, 1e-3)
        assert run.passes < 1.3 * twin.passes


def test_a_raise_that_was_too_much_is_taken_back(nav):
    """Only the planned rate is stable by a factor of 4: the search must find the way back from beyond it."""
    run = nav.Simulator(factor=1 / 2, oracle=lambda r: accuse_low(nav, r) + divergence(nav, r)).run()
    factor = run.in_force["learning_rate"][0].arguments["factor"] if "learning_rate" in run.in_force else 1.0
    assert 0.25 * factor < 2  # the loss is stable up to a rate of 2
    assert run.final < 0.01
    outcomes = [o for _, _, t in run.turns for o in t.outcomes]
    assert any(not o.kept and o.undone for o in outcomes)


def accuse_low(nav, run):
    return [nav.finding("slow_progress", ("learning_rate_too_low", 0.9), onset=1, last=run.step)]


def divergence(nav, run):
    steps = np.array(sorted(run.losses))
    loss = np.array([run.losses[s] for s in steps])
    low = np.flatnonzero(loss <= 2 * np.minimum.accumulate(loss))
    if steps[low[-1]] == run.step or loss[-1] < 0.1:
        return []
    onset = int(steps[low[-1] + 1])
    return [nav.finding("divergence", ("learning_rate_too_high", 0.8), severity="critical", onset=onset, last=run.step)]
