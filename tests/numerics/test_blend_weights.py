import numpy as np
import pytest

from dynaxx.numerics.blend_weights import DECAYS, decayed, exponential, half_life

STEPS = np.array([100.0, 130.0, 200.0, 210.0, 400.0])


def test_exponential_is_a_softmax_and_does_not_overflow():
    scores = np.array([1e4, 1e4 + 1, 1e4 + 3])
    expected = np.exp([0.0, -2.0, -6.0])
    assert exponential(scores, 0.5) == pytest.approx(expected / expected.sum())
    assert exponential(scores, 1e-3).tolist() == [1.0, 0.0, 0.0]
    assert exponential(scores, 1e6) == pytest.approx([1 / 3] * 3, abs=1e-5)


def test_half_life_is_the_recursion():
    generator = np.random.default_rng(0)
    theta, average = generator.normal(size=(5, 3)), None
    for i, step in enumerate(STEPS):
        if average is None:
            average = theta[i]
        else:
            average = average + (1 - 2 ** (-(step - STEPS[i - 1]) / 70)) * (theta[i] - average)
    weights = half_life(STEPS, 70.0)
    assert weights @ theta == pytest.approx(average)
    assert weights.sum() == pytest.approx(1.0)
    assert half_life(np.array([7.0]), 3.0).tolist() == [1.0]


def test_half_life_of_a_dense_run_is_the_ordinary_average():
    """Checkpoints of every step: share 1 − 2^(−1/h) each."""
    weights = half_life(np.arange(200.0), 5.0)
    assert weights[-1] == pytest.approx(1 - 2 ** (-1 / 5))
    assert weights[-6] / weights[-1] == pytest.approx(0.5)


@pytest.mark.parametrize("name", sorted(DECAYS))
def test_decayed_scales_what_each_interval_added(name):
    """Σ cⱼ θⱼ = θ₀ + Σ wᵢ gᵢ with wᵢ the decay at the edge between two checkpoints: the sum telescopes."""
    generator = np.random.default_rng(1)
    added = generator.normal(size=(4, 3))
    theta = generator.normal(size=3) + np.concatenate([np.zeros((1, 3)), np.cumsum(added, axis=0)])
    weights = decayed(STEPS, DECAYS[name])
    edges = np.array([85.0, 115.0, 165.0, 205.0, 305.0, 495.0])
    share = (edges - edges[0]) / (edges[-1] - edges[0])
    scales = np.array([DECAYS[name](u) for u in share[1:-1]])
    assert weights @ theta == pytest.approx(theta[0] + scales @ added)
    assert weights.sum() == pytest.approx(1.0)
    assert (weights >= 0).all()


def test_a_linear_decay_counts_steps():
    assert decayed(STEPS, DECAYS["linear"]) == pytest.approx(np.array([30, 50, 40, 100, 190]) / 410)
    assert decayed(np.array([5.0]), DECAYS["linear"]).tolist() == [1.0]


def test_decays_fall_from_one_to_zero():
    for decay in DECAYS.values():
        values = [decay(u) for u in np.linspace(0, 1, 50)]
        assert values[0] == 1
        assert values[-1] == pytest.approx(0, abs=1e-12)
        assert (np.diff(values) <= 0).all()
