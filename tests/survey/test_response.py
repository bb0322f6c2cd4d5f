"""Best rate, sensitivity, divergence and early curvature, against closed forms."""

import math

import numpy as np
import pytest

from dynaxx.errors import BadInput, NotApplicable
from dynaxx.survey.response import Scan, best, divergence, early_curvature, sensitivity

RATES = np.logspace(-4, -1, 7)


def parabola(noise=0.0, seeds=5, rates=RATES, at=-2.3, a=0.4, seed=0):
    """ℓ = 1 + a (log₁₀ η − at)² with a noise of each training and one that a seed has in common."""
    rng = np.random.default_rng(seed)
    clean = 1 + a * (np.log10(rates) - at) ** 2
    losses = clean + noise * (rng.standard_normal((seeds, len(rates))) + rng.standard_normal((seeds, 1)))
    return Scan(rates=rates, losses=losses, diverged=np.zeros(losses.shape, bool), initial=np.full(seeds, 5.0))


def test_vertex_of_a_parabola_is_exact():
    found = best(parabola())
    assert found.fitted
    assert found.side == "inside"
    assert math.log10(found.rate) == pytest.approx(-2.3, abs=1e-9)
    assert found.decades == pytest.approx(0, abs=1e-9)


def test_interval_covers_the_truth_as_often_as_it_says():
    inside = 0
    for draw in range(100):
        found = best(parabola(noise=0.02, seed=draw), seed=draw)
        inside += found.low <= 10**-2.3 <= found.high
    assert 84 <= inside <= 99  # 90 ± 3: two standard errors


def test_sensitivity_is_a_twelfth_of_the_curvature():
    fine = parabola(rates=np.logspace(-4, -1, 601), a=0.6, seeds=1)
    assert sensitivity(fine, 10**-2.3).value == pytest.approx(0.6 / 12, rel=1e-3)
    assert sensitivity(fine, 10**-2.3).error is None
    assert sensitivity(parabola(noise=0.05), 10**-2.3).error > 0


def test_losses_are_capped_by_the_initial_one():
    scan = Scan(
        rates=np.array([0.1, 1.0, 10.0]),
        losses=np.array([[1.0, 0.5, math.nan], [1.0, 0.5, 1e9]]),
        diverged=np.array([[False, False, True], [False, False, True]]),
        initial=np.array([2.0, 3.0]),
    )
    np.testing.assert_array_equal(scan.capped, [[1.0, 0.5, 2.0], [1.0, 0.5, 3.0]])
    found = best(scan)
    assert (found.rate, found.side, found.fitted) == (1.0, "beside divergence", False)
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(10.0))
    # The decade around 1 is [0.316, 3.16]: the mean excess of two straight lines over half a decade each.
    left, right = 0.25 * 0.5, 0.25 * 2.0
    assert sensitivity(scan, 1.0).value == pytest.approx((left + right) / 2)


@pytest.mark.parametrize(("at", "side"), [(-5.0, "lowest"), (0.5, "highest")])
def test_edge_of_the_grid_is_said(at, side):
    found = best(parabola(at=at, a=0.1))
    assert found.side == side
    assert found.rate == pytest.approx(RATES[0] if side == "lowest" else RATES[-1])


def test_one_seed_has_the_neighbours_as_its_interval():
    found = best(parabola(seeds=1))
    assert found.decades is None
    assert found.low == pytest.approx(10**-3.0)
    assert found.high == pytest.approx(10**-2.0)


def test_divergence_lies_between_the_last_that_did_not_and_the_first_that_did():
    scan = parabola(seeds=2)
    assert divergence(scan) is None
    diverged = np.zeros((2, 7), bool)
    diverged[0, 5:] = diverged[1, 6:] = True
    middle, low, high = divergence(Scan(rates=RATES, losses=scan.losses, diverged=diverged, initial=scan.initial))
    assert (low, high) == (pytest.approx(10**-2.0), pytest.approx(10**-1.0))
    assert middle == pytest.approx(10**-1.5)


def test_nothing_to_recommend():
    flat = np.full((2, 3), 2.0)
    rates, calm = np.array([0.1, 1.0, 10.0]), np.zeros((2, 3), bool)
    with pytest.raises(NotApplicable, match="lowered the loss"):
        best(Scan(rates=rates, losses=flat, diverged=calm, initial=np.full(2, 2.0)))
    with pytest.raises(NotApplicable, match="Every training diverged"):
        best(Scan(rates=rates, losses=flat, diverged=~calm, initial=np.full(2, 2.0)))
    with pytest.raises(BadInput, match="three positive"):
        Scan(rates=rates[:2], losses=flat[:, :2], diverged=calm[:, :2], initial=np.full(2, 2.0))


def test_curvature_of_a_parabola_along_the_first_step():
    rates = np.logspace(-3, 0, 7)
    g, h = np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 4.0])
    lengths = rates * np.linalg.norm(g)
    losses = np.array([0.5 * (h * (1 - r * g) ** 2).sum() for r in rates])
    found = early_curvature(np.stack([lengths, lengths]), np.stack([losses, losses + 1]))
    assert found.value == pytest.approx((h * g**2).sum() / (g**2).sum(), rel=1e-6)
    assert found.error == pytest.approx(0, abs=1e-6)
    assert early_curvature(lengths[None, :2], losses[None, :2]) is None
    losses[3:] = math.nan
    assert early_curvature(lengths[None], losses[None]).value == pytest.approx(73 / 21, rel=1e-3)
