import numpy as np
import pytest

from dynaxx.detectors.divergence import Divergence
from dynaxx.errors import NotApplicable


def stream(rng, steps=1600, noise=0.1):
    return 2.0 * np.exp(noise * rng.standard_normal(steps)) * (0.3 + 0.7 * np.exp(-np.arange(steps) / 200))


def test_a_falling_loss_is_silent(make_log, rng):
    assert Divergence().detect(make_log({"loss": stream(rng)})) is None


@pytest.mark.parametrize("rate", [1.005, 1.02])
def test_a_slow_drift_is_found_before_it_has_doubled(make_log, rng, rate):
    steps = np.arange(1600)
    loss = stream(rng) * rate ** np.maximum(0, steps - 1000)
    doubled = 1000 + int(np.log(2) / np.log(rate)) + 32
    found = Divergence().detect(make_log({"loss": loss[:doubled]}))
    assert found.severity == "warning"
    assert abs(found.onset - 1000) < 70
    assert found.causes[0].name == "learning_rate_too_high"


def test_a_jump_that_stays_speaks_for_the_data(make_log, rng):
    loss = stream(rng)
    loss[1000:] *= 2.0
    found = Divergence().detect(make_log({"loss": loss}))
    names = [c.name for c in found.causes]
    assert "data_shift" in names[:2]
    assert found.evidence[0].value == pytest.approx(2.0, rel=0.2)


def test_a_raised_rate_is_named(make_log, rng):
    steps = np.arange(1600)
    loss = stream(rng) * 1.01 ** np.clip(steps - 1000, 0, 200)
    lr = np.where(steps < 995, 0.1, 0.5)[:, None]
    found = Divergence().detect(make_log({"loss": loss, "lr": (steps + 1, lr, ("group 0",))}))
    assert "schedule_too_aggressive" in [c.name for c in found.causes[:2]]


def test_above_the_start_it_is_critical(make_log, rng):
    loss = stream(rng) * 1.02 ** np.maximum(0, np.arange(1600) - 1300)
    assert Divergence().detect(make_log({"loss": loss})).severity == "critical"


def test_what_came_back_is_a_note(make_log, rng):
    loss = stream(rng)
    loss[600:800] *= 2.0
    found = Divergence().detect(make_log({"loss": loss}))
    assert found.severity == "note"


def test_near_zero_many_times_is_nothing(make_log, rng):
    loss = stream(rng) * np.exp(-np.arange(1600) / 120)
    loss[1400:] *= 5
    assert Divergence().detect(make_log({"loss": loss})) is None


def test_too_short(make_log, rng):
    with pytest.raises(NotApplicable, match="128"):
        Divergence().detect(make_log({"loss": stream(rng, 100)}))


def test_a_rise_on_its_way_back_is_a_note(make_log, rng):
    loss = stream(rng, noise=0.02)
    rise = 0.9 * np.exp(-np.arange(600) / 150)
    assert Divergence().detect(make_log({"loss": np.r_[loss[:1000], loss[1000:] + rise][:1050]})).severity == "warning"
    assert Divergence().detect(make_log({"loss": np.r_[loss[:1000], loss[1000:] + rise][:1160]})).severity == "note"


def test_a_gradient_out_of_nowhere_accuses_the_batch(make_log, rng):
    loss = stream(rng, noise=0.02)
    loss[1000:] += 0.8
    norms = np.exp(0.1 * rng.standard_normal(1600))
    struck = norms.copy()
    struck[999] = 200.0
    lasting = norms * np.where(np.arange(1600) < 999, 1.0, 200.0)
    named = [
        Divergence().detect(make_log({"loss": loss, "grad_norm": g[:, None]})).causes[0].name
        for g in (struck, norms, lasting)
    ]
    assert named[0] == "corrupted_batch"
    assert "corrupted_batch" not in named[1:], "a gradient that stays high is the run's own"
