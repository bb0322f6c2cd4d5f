import itertools
import math

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from dynaxx.rescue.statistics import Rate, Share, effect, mean_ratio, sign_flip


def test_sign_flip_counts_the_patterns():
    values = [3.0, -1.0, 2.0, 0.5]
    sums = [sum(s * v for s, v in zip(signs, values, strict=True)) for signs in itertools.product((1, -1), repeat=4)]
    assert sign_flip(values) == sum(total >= 4.5 for total in sums) / 16
    assert sign_flip([]) == 1.0
    assert sign_flip([0.0, 0.0]) == 1.0  # ties are no evidence


@pytest.mark.parametrize("count", [1, 3, 5, 8])
def test_sign_flip_is_two_to_the_minus_n_when_all_are_worse(count):
    assert sign_flip([0.1 * (i + 1) for i in range(count)]) == 2.0**-count
    assert sign_flip([-0.1 * (i + 1) for i in range(count)]) == 1.0


def test_sign_flip_takes_runs_that_ended_in_no_number():
    assert sign_flip([math.inf] * 5) == 2.0**-5
    assert sign_flip([math.inf, 1.0, 1.0, 1.0, 1.0]) == 2.0**-5
    assert sign_flip([math.inf, -1.0, -1.0, -1.0, -1.0]) > 0.5  # one diverged run does not decide


def test_sign_flip_of_many_pairs_is_near_the_normal_limit():
    values = np.random.default_rng(0).normal(0.25, 1.0, 60)
    z = values.sum() / np.sqrt((values**2).sum())
    normal = 0.5 * math.erfc(z / math.sqrt(2))
    assert sign_flip(list(values)) == pytest.approx(normal, abs=0.01)


@pytest.mark.parametrize(("hits", "of"), [(0, 20), (1, 20), (7, 20), (20, 20)])
def test_share_is_clopper_pearson(hits, of):
    truth = binomtest(hits, of).proportion_ci(method="exact")
    share = Share(hits=hits, of=of)
    assert (share.low, share.high) == pytest.approx((truth.low, truth.high))
    assert share.value == hits / of


def test_share_of_nothing_says_so():
    assert str(Share(hits=0, of=0)) == "–"
    assert math.isnan(Share(hits=0, of=0).value)


def test_rate_covers_a_poisson_count():
    rate = Rate(events=4, steps=50_000)
    assert rate.value == pytest.approx(0.8)
    # P(X ≥ 4 | low) = P(X ≤ 4 | high) = 0.025
    below = sum(math.exp(-rate.low * 5) * (rate.low * 5) ** k / math.factorial(k) for k in range(4))
    above = sum(math.exp(-rate.high * 5) * (rate.high * 5) ** k / math.factorial(k) for k in range(5))
    assert (1 - below, above) == pytest.approx((0.025, 0.025))


def test_effect():
    assert effect([2.0, 3.0, 4.0], [0.0, 1.0, 2.0]) == 2.0
    assert effect([math.nan, 1.0], [0.0, 1.0]) == math.inf
    assert math.isnan(effect([1.0], [0.0]))


def test_mean_ratios_are_students_of_the_logarithms():
    above, below = [1.1, 0.7, 2.0, 1.3], [1.0, 0.9, 1.5, 1.1]
    found = mean_ratio(above, below)
    peer = ttest_1samp(np.log(np.divide(above, below)), 0.0).confidence_interval()
    assert (found.value, found.of) == (pytest.approx(math.prod(np.divide(above, below)) ** 0.25), 4)
    assert (found.low, found.high) == pytest.approx((math.exp(peer.low), math.exp(peer.high)))


def test_mean_ratios_without_an_interval_say_none():
    lone, lost, none = mean_ratio([1.5], [1.0]), mean_ratio([math.inf, 1.0], [1.0, 1.0]), mean_ratio([], [])
    assert (lone.value, lone.low, lone.high, str(lone)) == (1.5, 0.0, math.inf, "1.500×")
    assert (lost.value, lost.low, lost.high) == (math.inf, 0.0, math.inf)
    assert (math.isnan(none.value), str(none)) == (True, "–")
