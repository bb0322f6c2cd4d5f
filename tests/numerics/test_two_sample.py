import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import mannwhitneyu

from dynaxx.numerics.two_sample import rank_shift


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
