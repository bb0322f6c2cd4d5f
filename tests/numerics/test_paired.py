import itertools
import math

import numpy as np
import pytest

from dynaxx.numerics.paired import ENUMERATED, paired


def p_value(d, w, shift):
    """By definition: the share of all sets of signs whose sum is as far from 0 as the one that was observed."""
    apart = w * (d - shift)
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(d))))
    return float(np.mean(np.abs(signs @ apart) >= abs(apart.sum()) - 1e-12))


@pytest.mark.parametrize("seed", range(6))
def test_interval_and_p_are_those_of_the_sign_flip_test(seed):
    generator = np.random.default_rng(seed)
    d = generator.normal(0.4, 1.0, size=8)
    w = generator.uniform(0.2, 2.0, size=8)
    w /= w.sum()
    found = paired(d, w)
    assert found.mean == pytest.approx(w @ d)
    assert found.p == pytest.approx(p_value(d, w, 0.0))
    width = found.high - found.low
    for end, outwards in ((found.low, -1), (found.high, 1)):
        assert p_value(d, w, end - outwards * 1e-6 * width) > 0.05
        assert p_value(d, w, end + outwards * 1e-6 * width) <= 0.05


def test_many_pairs_agree_with_the_normal_interval():
    d = np.random.default_rng(0).normal(0.2, 1.0, size=400)
    found = paired(d)
    error = d.std(ddof=1) / math.sqrt(400)
    assert found.low == pytest.approx(d.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(d.mean() + 1.96 * error, abs=0.1 * error)
    z = abs(d.mean()) / error
    assert found.p == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.01)


@pytest.mark.parametrize("n", [8, 20])
def test_coverage(n):
    """Where the truth is 0, the interval leaves it out in 5 % of all cases."""
    generator = np.random.default_rng(n)
    missed = 0
    for _ in range(400):
        found = paired(generator.standard_t(3, size=n))
        missed += found.low > 0 or found.high < 0
    assert 0.02 <= missed / 400 <= 0.08


def test_few_pairs_have_no_interval():
    found = paired(np.array([-1.0, -1.1, -0.9, -1.0, -1.05]))
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert found.p == pytest.approx(2 / 2**5)
    assert paired(np.array([-1.0, -1.1, -0.9, -1.0, -1.05, -1.2])).high < 0


def test_pairs_without_weight_do_not_count():
    d, w = np.array([1.0, 2.0, 99.0, 3.0, 1.5, 2.5, 2.0]), np.array([1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    assert paired(d, w) == paired(d[w > 0])
    assert paired(d, w).pairs == 6


def test_no_difference_is_no_difference():
    found = paired(np.zeros(20))
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_exact_and_drawn_sets_agree():
    d = np.random.default_rng(3).normal(0.5, 1.0, size=ENUMERATED)
    exact, drawn = paired(d), paired(np.append(d, 0.0), np.append(np.ones(ENUMERATED), 1e-9))
    assert drawn.p == pytest.approx(exact.p, abs=0.015)
    assert drawn.low == pytest.approx(exact.low, abs=0.1)


def test_what_is_not_finite_is_infinitely_worse():
    found = paired(np.array([0.1, np.nan, 0.2, -0.1, 0.0, 0.3, 0.2]))
    assert (found.mean, found.low) == (math.inf, math.inf)
