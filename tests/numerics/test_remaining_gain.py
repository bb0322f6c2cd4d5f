import numpy as np
import pytest

from dynaxx.errors import BadInput
from dynaxx.numerics.remaining_gain import remaining_gain

AT = np.arange(20.0, 501.0, 20.0)


@pytest.mark.parametrize("exponent", [0.3, 1.0, 2.0])
def test_a_power_law_gains_less_than_its_past_promises(exponent):
    found = remaining_gain(AT, 1 + 5 * AT**-exponent, end=1000.0)
    truth = 5 * (500.0**-exponent - 1000.0**-exponent)
    assert truth < found.expected <= found.most


def test_an_exponential_beyond_its_time_constant_gains_less_than_promised():
    at = AT[AT >= 250]
    found = remaining_gain(at, 1 + np.exp(-at / 100), end=1000.0)
    assert np.exp(-5.0) - np.exp(-10.0) < found.most


def test_the_bound_holds_as_often_as_it_says_and_outliers_do_not_move_it():
    truth, below, outliers = np.log(2.0), 0, 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        values = 10 - np.log(AT) + 0.2 * rng.standard_normal(len(AT))
        below += remaining_gain(AT, values, end=1000.0).most >= truth
        values[rng.integers(len(AT))] += 100
        outliers += remaining_gain(AT, values, end=1000.0).most >= truth
    # Four standard errors of a share of 400 at 0.8 are 0.08; the correlation that is found by chance makes it wider.
    assert 0.72 < below / 400 < 0.95
    assert 0.72 < outliers / 400 < 0.97


def test_correlated_noise_widens_it():
    rng = np.random.default_rng(0)
    white, walk = rng.standard_normal(200), np.convolve(rng.standard_normal(219), np.ones(20) / 20**0.5, "valid")
    at = np.linspace(250, 500, 200)
    widths = [remaining_gain(at, v, 1000.0).most - remaining_gain(at, v, 1000.0).expected for v in (white, walk)]
    assert widths[1] > 2 * widths[0]


def test_at_the_end_nothing_is_left():
    assert remaining_gain(AT, np.log(AT), end=500.0) == (0.0, 0.0)


def test_refusals():
    with pytest.raises(BadInput, match="5 points"):
        remaining_gain(AT[:4], AT[:4], end=1000.0)
    with pytest.raises(BadInput, match="positive times"):
        remaining_gain(AT - 20, AT, end=1000.0)
    with pytest.raises(BadInput, match="sure"):
        remaining_gain(AT, AT, end=1000.0, sure=0.5)
