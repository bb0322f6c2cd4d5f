import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dynaxx.core.records import Axis, Column
from dynaxx.runlog.derive import STATISTICS, derivable, measured, smoothed, statistic

MATRICES = st.tuples(st.integers(1, 6), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(-1e6, 1e6))
)


def column(entries, reduce, weights=()):
    return Column(
        name="x", reduce=reduce, axis=Axis(name="layer", labels=tuple(map(str, range(entries))), weights=weights)
    )


@settings(deadline=None)
@given(MATRICES)
def test_every_statistic_is_numpys(x):
    entries = x.shape[1]
    weights = tuple(float(n + 1) for n in range(entries))
    third = max(1, entries // 3)
    with np.errstate(all="ignore"):
        expected = {
            ("total", "l2"): np.linalg.norm(x, axis=1),
            ("total", "sum"): np.sum(x, axis=1),
            ("total", "mean"): np.average(x, axis=1, weights=weights),
            ("total", "max"): np.max(x, axis=1),
            ("total", "min"): np.min(x, axis=1),
            ("max", "none"): np.max(x, axis=1),
            ("min", "none"): np.min(x, axis=1),
            ("median", "none"): np.percentile(x, 50, axis=1),
            ("q10", "none"): np.percentile(x, 10, axis=1),
            ("q90", "none"): np.percentile(x, 90, axis=1),
            ("early_to_late", "none"): np.mean(x[:, :third], 1) / np.mean(x[:, entries - third :], 1),
        }
    for (suffix, reduce), answer in expected.items():
        got = statistic(suffix, x, column(entries, reduce, weights))
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, answer, rtol=1e-9, atol=1e-6, err_msg=suffix)
    assert {suffix for suffix, _ in expected} == {"total", *STATISTICS}


def test_norms_of_float32_are_summed_in_float64():
    x = np.full((1, 3), 3e38, np.float32)
    assert statistic("total", x, column(3, "l2"))[0] == pytest.approx(3e38 * 3**0.5, rel=1e-6)
    many = np.ones((1, 2**25), np.float32)  # float32 stops counting at 2²⁴
    assert statistic("total", many, Column(name="x", reduce="sum"))[0] == 2**25


def test_equal_weights_where_there_are_none():
    assert statistic("total", np.array([[1.0, 2.0, 6.0]]), column(3, "mean"))[0] == 3.0


def test_nan_is_passed_on_but_entries_that_never_were_measured_are_left_out():
    x = np.array([[1.0, 2.0, np.nan], [1.0, np.nan, np.nan]])
    np.testing.assert_array_equal(measured(x), [0, 1])
    np.testing.assert_array_equal(statistic("max", x, column(3, "none")), [2.0, np.nan])
    np.testing.assert_array_equal(statistic("total", x, column(3, "mean", (1.0, 3.0, 9.0))), [1.75, np.nan])
    np.testing.assert_array_equal(statistic("total", x, column(3, "max")), [2.0, np.nan])
    np.testing.assert_array_equal(statistic("total", x, column(3, "l2")), [np.nan, np.nan])
    assert np.isnan(statistic("max", np.full((2, 2), np.nan), column(2, "none"))).all()


def test_infinity_is_an_answer():
    x = np.array([[np.inf, 1.0, np.inf, 0.0]])
    assert statistic("max", x, column(4, "none"))[0] == np.inf
    assert statistic("total", x, column(4, "l2"))[0] == np.inf
    assert statistic("early_to_late", np.array([[1.0, 1.0, 0.0]]), column(3, "none"))[0] == np.inf


def test_what_can_be_derived():
    assert derivable(Column(name="loss")) == ()
    assert "total" in derivable(column(2, "sum"))
    assert "total" not in derivable(column(2, "none"))


@settings(deadline=None)  # the first call imports scipy.signal
@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e3, 1e3) | st.sampled_from([np.nan, np.inf])))
def test_smoothing_is_the_weighted_mean_of_its_formula(x):
    beta = 2 ** (-1 / max(5, len(x) / 100))
    got = smoothed(x)
    for i in range(len(x)):
        weights = beta ** (i - np.arange(i + 1.0)) * np.isfinite(x[: i + 1])
        there = np.where(np.isfinite(x[: i + 1]), x[: i + 1], 0)
        expected = (weights * there).sum() / weights.sum() if weights.sum() else np.nan
        np.testing.assert_allclose(got[i], expected, rtol=1e-9, atol=1e-9)


def test_the_half_life_is_one_hundredth_of_the_points():
    jump = np.r_[np.zeros(1000), np.ones(1000)]
    late = smoothed(np.r_[np.zeros(1980), np.ones(20)])  # 20 points of 2000: one half-life
    assert late[-1] == pytest.approx(0.5, abs=1e-6)
    assert smoothed(jump)[-1] == pytest.approx(1.0, abs=1e-9)
