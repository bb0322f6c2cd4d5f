"""Seven kinds of noise (the table is benchmarks/spikes.py): next to nothing is said of them, and incidents are seen."""

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.special import ndtr, stdtrit

from dynaxx.detectors._spikes import _thrown, spikes, sudden
from dynaxx.errors import NotApplicable

STEPS = 3000


def correlated(rng):
    return lfilter([1.0], [1.0, -0.5], rng.standard_normal(STEPS)) * np.sqrt(0.75)


NOISE = {
    "gauss": lambda rng: 2 * (1 + 0.02 * rng.standard_normal(STEPS)),
    "lognormal .1": lambda rng: 2 * np.exp(0.1 * rng.standard_normal(STEPS)),
    "lognormal .3": lambda rng: 2 * np.exp(0.3 * rng.standard_normal(STEPS)),
    "t3": lambda rng: 2 * np.exp(0.05 * rng.standard_t(3, STEPS)),
    "decay": lambda rng: (0.5 + 2 * np.exp(-np.arange(STEPS) / 800)) * np.exp(0.02 * rng.standard_normal(STEPS)),
    "hard batches": lambda rng: (
        2 * np.exp(0.02 * rng.standard_normal(STEPS)) * np.where(rng.random(STEPS) < 0.01, 2, 1)
    ),
    "gradient norm": lambda rng: np.exp(0.27 * stdtrit(6, ndtr(correlated(rng)))),
}


@pytest.mark.parametrize("name", NOISE)
def test_noise_is_not_spoken_of(name, rng):
    found = [spike for _ in range(10) for spike in spikes(NOISE[name](rng))]
    assert sum(spike.lasting for spike in found) <= 1
    assert len(found) <= 5  # 30 000 steps


@pytest.mark.parametrize("name", ["gauss", "lognormal .1", "decay", "hard batches", "t3"])
def test_a_lasting_rise_is_seen_in_all_of_it(name, rng):
    for at in (900, 1700, 2500):
        values = NOISE[name](rng)
        values[at : at + 20] *= 3
        found = [spike for spike in spikes(values) if spike.lasting]
        assert any(abs(spike.first - at) <= 2 and abs(spike.last - at - 19) <= 3 for spike in found)


def test_single_steps_by_size(rng):
    def share(factor):
        hits = 0
        for _ in range(20):
            values = NOISE["lognormal .1"](rng)
            values[2000] *= factor
            hits += any(spike.first == 2000 and not spike.lasting for spike in spikes(values))
        return hits / 20

    assert share(4.0) == 1.0
    assert share(2.0) >= 0.85
    assert 0.2 <= share(1.5) <= 0.85  # four deviations: 0.63 is the most that any such rule can reach


def test_a_spike_does_not_hide_the_next(rng):
    values = NOISE["gauss"](rng)
    for at in (1000, 1060, 1120, 1180):
        values[at : at + 25] *= 3
    assert len([spike for spike in spikes(values) if spike.lasting]) == 4


def test_a_new_level_is_accepted_in_time(rng):
    values = NOISE["gauss"](rng)
    values[1000:] *= 2
    (found,) = [spike for spike in spikes(values) if spike.lasting]
    assert found.first == 1000
    assert 1000 + 32 <= found.last <= 1000 + 128
    assert not found.open


def test_zeros_are_the_smallest_losses_and_negatives_are_refused(rng):
    values = NOISE["gauss"](rng)
    values[::7] = 0.0
    spikes(values)
    with pytest.raises(NotApplicable, match="not positive"):
        spikes(values - 1)


def test_sudden_parts_a_jump_from_a_climb(rng):
    noise = np.exp(0.02 * rng.standard_normal(100))
    jump, climb = noise.copy(), noise.copy()
    jump[60:] *= 10
    climb[60:] *= np.minimum(10, 1.3 ** np.arange(1, 41))
    assert sudden(jump, 60, 80) > 0.9
    assert sudden(climb, 60, 90) < 0.2


def test_what_lies_beyond_all_before_is_seen_in_any_noise(rng):
    """A loss that jumps about sevenfold from step to step has no scale to measure a rise by; ranks do."""
    values = np.exp(2 * rng.standard_normal(400) - np.arange(400) / 100)
    thrown = values.copy()
    thrown[300:] = 3 * values[236:300].max()
    (found,) = (spike for spike in spikes(thrown[:320]) if spike.lasting)
    assert (found.first, found.last, found.open) == (300, 319, True)
    for lasting, seen in ((15, False), (16, True)):
        brief = values.copy()
        brief[300 : 300 + lasting] = 3 * values[236:300].max()
        brief[300 + lasting :] = 0.5
        assert bool(_thrown(brief)) is seen


@pytest.mark.parametrize("name", NOISE)
def test_no_noise_is_beyond_itself(name, rng):
    assert not any(_thrown(NOISE[name](rng)) for _ in range(10))
