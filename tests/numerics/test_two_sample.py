import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import ks_2samp, mannwhitneyu

from dynaxx.numerics.two_sample import law_shift, rank_shift


def test_equals_scipy_for_white_noise():
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=80), rng.normal(0.3, 1, size=100)
    share, p = rank_shift(before, after)
    truth = mannwhitneyu(after, before, alternative="greater", method="asymptotic")
    assert share == pytest.approx(truth.statistic / 8000)
    assert p >= truth.pvalue * 0.99  # never surer than the test that knows no correlation
    assert p == pytest.approx(truth.pvalue, abs=0.1)


@pytest.mark.parametrize("phi", [0.0, 0.7])
def test_false_alarms_with_correlation(phi):
    rng = np.random.default_rng(1)
    noise = lfilter([1.0], [1.0, -phi], rng.standard_normal((1000, 200)), axis=1)
    alarms = np.mean([rank_shift(row[:100], row[100:])[1] < 0.05 for row in noise])
    assert alarms < 0.085


def test_few_values_are_never_sure():
    assert rank_shift(np.array([1.0, 2.0]), np.array([3.0, 4.0]))[1] >= 1 / 6


def test_nothing_to_compare():
    assert rank_shift(np.empty(0), np.arange(3.0)) == (0.5, 1.0)


def test_law_shift_equals_scipy_for_white_noise():
    rng = np.random.default_rng(2)
    before, after = rng.normal(size=300), 1.5 * rng.normal(size=200)
    distance, p = law_shift(before, after)
    truth = ks_2samp(before, after, method="asymp")
    assert distance == pytest.approx(truth.statistic)
    assert truth.pvalue * 0.99 <= p < 20 * truth.pvalue


def test_law_shift_is_not_fooled_by_correlation():
    rng = np.random.default_rng(3)
    noise = lfilter([1.0], [1.0, -0.7], rng.standard_normal((1000, 400)), axis=1)
    assert np.mean([law_shift(row[:200], row[200:])[1] < 0.05 for row in noise]) < 0.09
