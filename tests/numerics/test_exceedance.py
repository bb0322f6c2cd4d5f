import numpy as np
import pytest
from scipy.stats import norm

from dynaxx.errors import BadInput
from dynaxx.numerics.exceedance import exceedance_threshold

RATE = 1e-4
DRAWS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "student 5": lambda rng, n: rng.standard_t(5, n) / 1.078,
    "student 3": lambda rng, n: rng.standard_t(3, n) / 1.134,
    "laplace": lambda rng, n: rng.laplace(size=n) / 1.0277,
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_wanted_rate_is_not_exceeded(name):
    rng = np.random.default_rng(0)
    fresh = DRAWS[name](rng, 400_000)
    rates = [float((fresh > exceedance_threshold(DRAWS[name](rng, 2000), RATE)).mean()) for _ in range(30)]
    assert np.mean(rates) < 2 * RATE
    assert (
        np.median(rates) <= 1.1 * RATE
    )  # a fair coin of samples is on the safe side, except for chance in the fresh ones


def test_a_normal_sample_keeps_the_normal_quantile():
    rng = np.random.default_rng(1)
    found = [exceedance_threshold(rng.standard_normal(1000), RATE) for _ in range(100)]
    assert np.mean(np.isclose(found, norm.isf(RATE))) > 0.85


def test_a_mixture_with_rare_large_values_is_not_a_normal_sample():
    rng = np.random.default_rng(2)
    sample = rng.standard_normal(2000) + 30 * (rng.random(2000) < 0.01)
    assert exceedance_threshold(sample, RATE) > 33


def test_one_large_value_does_not_pass_for_normal():
    sample = np.concatenate([np.random.default_rng(3).standard_normal(999), [25.0]])
    assert exceedance_threshold(sample, RATE) > norm.isf(RATE) + 0.5


@pytest.mark.parametrize(("count", "rate"), [(39, 1e-4), (100, 0.0), (100, 0.05)])
def test_bad_input(count, rate):
    with pytest.raises(BadInput, match="40 numbers"):
        exceedance_threshold(np.zeros(count), rate)
