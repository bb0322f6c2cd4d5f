import numpy as np
import pytest

from dynaxx.detectors._read import ROWS, fallen, matching, rows
from dynaxx.detectors._spans import entries, moving_mean, stretches, within
from dynaxx.detectors._weigh import suspect
from dynaxx.errors import NotApplicable


def test_thinning_keeps_the_same_rows_of_the_past_as_the_log_grows(make_log):
    long = make_log({"x": np.arange(10_000.0)})
    longer = make_log({"x": np.arange(11_000.0)})
    one, other = rows(long, "x"), rows(longer, "x")
    assert ROWS // 2 <= len(one) <= 2 * ROWS
    assert np.array_equal(one.steps, other.steps[: len(one)])
    assert np.array_equal(one.values, one.steps - 1)
    assert len(rows(make_log({"x": np.ones(2000)}), "x")) == 2000


def test_a_sparse_tail_is_kept_where_few_rows_are_multiples(make_log):
    steps = np.concatenate([np.arange(1, 3001, 2), np.arange(3001, 9001, 8)])
    assert len(rows(make_log({"x": (steps, np.ones(len(steps)))}), "x")) == len(steps)


def test_what_cannot_be_read_says_why(make_log):
    log = make_log({"x": np.ones(5), "twice": ([1, 2, 1, 2], np.ones(4))})
    for name, least, word in [("x", 9, "at least 9"), ("none", 1, "none"), ("twice", 1, "two runs")]:
        with pytest.raises(NotApplicable, match=word):
            rows(log, name, least)


def test_moving_mean_is_that_of_numpy_over_finite_values(rng):
    x = rng.normal(size=(50, 3))
    x[rng.random((50, 3)) < 0.3] = np.nan
    expected = np.full_like(x, np.nan)
    for i in range(50):
        for j in range(3):
            part = x[max(0, i - 6) : i + 1, j]
            if np.isfinite(part).any():
                expected[i, j] = part[np.isfinite(part)].mean()
    assert moving_mean(x, 7) == pytest.approx(expected, nan_ok=True)


def test_stretches_are_long_enough_and_open_at_the_end():
    steps = np.array([1, 2, 3, 10, 20, 30])
    flags = np.array([True, False, True, True, False, True])
    assert stretches(steps, flags, 1, 35) == ((1, 1), (3, 10), (30, 35))
    assert stretches(steps, flags, 2, 35) == ((3, 10),)
    assert stretches(steps, ~flags, 1, 35) == ((2, 2), (20, 20))
    assert stretches(steps[:0], flags[:0], 1, 0) == ()
    assert within(steps, ((2, 9), (30, 31))).tolist() == [False, True, True, False, False, True]
    assert entries(steps, np.stack([flags, ~flags], axis=1), 2, 35) == {0: ((3, 10),)}


def test_matching_rows_of_two_columns(make_log):
    log = make_log({"a": ([1, 3, 5, 7], np.ones(4)), "b": ([3, 4, 7], np.ones(3))})
    here, there = matching(log["a"], log["b"])
    assert here.tolist() == [1, 3]
    assert there.tolist() == [0, 2]


def test_evidence_multiplies_odds():
    assert suspect("label_noise", 0.2, 4.0, 2.0).confidence == pytest.approx(2 / 3)


@pytest.mark.parametrize(("loss", "share"), [((2.0, 0.5), 0.75), ((2.0, 3.0), -0.5), ((-1.0, -3.0), 2.0)])
def test_what_has_fallen(make_log, loss, share):
    values = np.concatenate([np.full(50, loss[0]), np.full(50, loss[1])])
    assert fallen(make_log({"loss": values})) == pytest.approx(share)
    assert np.isnan(fallen(make_log({"x": values})))
