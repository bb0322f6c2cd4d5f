import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import linregress, norm

from dynaxx.errors import BadInput
from dynaxx.numerics.trend import points_to_see, trend


def test_slope_and_error_are_those_of_scipy_for_white_noise():
    rng = np.random.default_rng(0)
    at = np.arange(200.0)
    values = 1 - 0.02 * at + rng.standard_normal(200)
    found, truth = trend(at, values), linregress(at, values)
    assert found.slope == pytest.approx(truth.slope)
    assert found.error == pytest.approx(truth.stderr * np.sqrt(found.correlation))
    assert found.correlation < 1.6
    assert found.level == pytest.approx(truth.intercept + truth.slope * 199)


@pytest.mark.parametrize("phi", [0.0, 0.6])
def test_the_bound_covers_as_often_as_it_says(phi):
    rng = np.random.default_rng(1)
    at = np.arange(300.0)
    noise = lfilter([1.0], [1.0, -phi], rng.standard_normal((600, 300)), axis=1)
    covered = np.mean([trend(at, 0.01 * at + row).bound(0.95) > 0.01 for row in noise])
    assert covered == pytest.approx(0.95, abs=0.04)


def test_ignoring_correlation_would_not_cover():
    rng = np.random.default_rng(2)
    at = np.arange(300.0)
    noise = lfilter([1.0], [1.0, -0.6], rng.standard_normal((300, 300)), axis=1)
    naive = np.mean([linregress(at, row).slope + norm.ppf(0.95) * linregress(at, row).stderr > 0 for row in noise])
    assert naive < 0.85


def test_probability_of_improvement():
    rng = np.random.default_rng(3)
    at = np.arange(400.0)
    falling = trend(at, 5 - 0.01 * at + 0.1 * rng.standard_normal(400))
    assert falling.improves(0.5, 100.0) > 0.99
    assert falling.improves(2.0, 100.0) < 0.01
    assert 0.3 < np.mean([trend(at, 0.1 * rng.standard_normal(400)).improves(0.0, 100.0) for _ in range(50)]) < 0.7


def test_probability_is_calibrated():
    rng = np.random.default_rng(4)
    at = np.arange(100.0)
    uniform = np.array([trend(at, rng.standard_normal(100)).improves(0.0, 1.0) for _ in range(2000)])
    assert np.mean(uniform < 0.1) == pytest.approx(0.1, abs=0.035)
    assert np.mean(uniform < 0.5) == pytest.approx(0.5, abs=0.04)


def test_points_to_see_gives_the_power_it_promises():
    rng = np.random.default_rng(5)
    count = round(points_to_see(0.2, 0.5))
    before, after = rng.normal(0, 0.5, (4000, count)).mean(1), rng.normal(-0.2, 0.5, (4000, count)).mean(1)
    seen = before - after > norm.ppf(0.95) * 0.5 * np.sqrt(2 / count)
    assert seen.mean() == pytest.approx(0.95, abs=0.02)


def test_bad_input():
    with pytest.raises(BadInput, match="4 points"):
        trend(np.arange(3.0), np.zeros(3))
    with pytest.raises(BadInput, match="positive"):
        points_to_see(0.0, 1.0)
