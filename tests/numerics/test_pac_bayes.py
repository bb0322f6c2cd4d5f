import math

import numpy as np
import pytest
from scipy.optimize import brentq

from dynaxx.errors import BadInput
from dynaxx.numerics.pac_bayes import gaussian_divergence, inverse_kl, maurer, mcallester


@pytest.mark.parametrize(("q", "c"), [(0.0, 0.5), (0.02, 0.001), (0.3, 0.2), (0.9, 1.0), (0.5, 1e-9)])
def test_the_inverse_of_the_binary_divergence(q, c):
    def kl(p):
        return (q * math.log(q / p) if q else 0.0) + (1 - q) * math.log((1 - q) / (1 - p)) - c

    assert inverse_kl(q, c) == pytest.approx(brentq(kl, q + 1e-13, 1 - 1e-13, xtol=1e-14), abs=1e-9)


def test_the_inverse_bounds_an_expectation_as_often_as_it_says():
    rng = np.random.default_rng(0)
    means = rng.binomial(50, 0.2, size=4000) / 50
    failed = np.mean([inverse_kl(m, math.log(1 / 0.1) / 50) < 0.2 for m in means])
    assert 0.005 < failed <= 0.1


def test_the_divergence_between_gaussians_is_that_of_torch():
    import torch
    from torch.distributions import Normal, kl_divergence

    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    truth = kl_divergence(Normal(w, 0.3), Normal(torch.zeros(3, dtype=torch.float64), 0.3)).sum()
    assert gaussian_divergence(float(w.norm()), 0.3) == pytest.approx(float(truth))


def test_maurer_is_the_tighter_and_both_shrink_with_examples():
    for error in (0.0, 0.05, 0.4):
        values = [(maurer(error, 20.0, m, 0.05), mcallester(error, 20.0, m, 0.05)) for m in (100.0, 1000.0, 10000.0)]
        assert all(error < a <= b for a, b in values)
        assert values[0] > values[1] > values[2]


@pytest.mark.parametrize("bound", [maurer, mcallester])
def test_the_bounds_hold_for_the_gibbs_classifier_of_a_threshold_problem(bound):
    """x uniform on [0, 1], label x > 1/2; posteriors over 64 thresholds by the Gibbs measure, prior uniform."""
    rng = np.random.default_rng(1)
    thresholds = (np.arange(64) + 0.5) / 64
    true = np.abs(thresholds - 0.5)
    failed = 0
    for _ in range(200):
        x = rng.random(60)
        empirical = ((x[:, None] > thresholds) != (x[:, None] > 0.5)).mean(0)
        q = np.exp(-60 * empirical)
        q /= q.sum()
        divergence = float((q * np.log(q * 64 + 1e-300)).sum())
        failed += bound(float(q @ empirical), divergence, 60.0, 0.05) < q @ true
    assert failed <= 10


def test_a_loss_beyond_one_is_refused():
    with pytest.raises(BadInput, match=r"needs a loss in \[0, 1\]"):
        mcallester(1.7, 1.0, 100.0, 0.05)
    with pytest.raises(BadInput, match="at least 8 examples"):
        maurer(0.1, 1.0, 5.0, 0.05)
