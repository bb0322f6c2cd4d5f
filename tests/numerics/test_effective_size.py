import numpy as np
import pytest
from scipy.signal import lfilter

from dynaxx.numerics.effective_size import autocorrelation_time


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, -0.5])
def test_autoregression_has_its_closed_form(phi):
    noise = np.random.default_rng(0).standard_normal(60_000)
    series = lfilter([1.0], [1.0, -phi], noise)
    assert autocorrelation_time(series) == pytest.approx((1 + phi) / (1 - phi), rel=0.15, abs=0.05)


def test_variance_of_means_agrees():
    rng = np.random.default_rng(1)
    series = lfilter([1.0], [1.0, -0.8], rng.standard_normal((400, 2000)), axis=1)
    empirical = series.mean(axis=1).var() / series.var() * 2000
    assert np.median([autocorrelation_time(row) for row in series]) == pytest.approx(empirical, rel=0.25)


def test_constants_and_short_series_are_one():
    assert autocorrelation_time(np.full(100, 3.0)) == 1.0
    assert autocorrelation_time(np.array([1.0, 2.0])) == 1.0
