import numpy as np
import pytest

from dynaxx.detectors.schedule_too_aggressive import ScheduleTooAggressive
from dynaxx.errors import NotApplicable

AT = np.arange(1, 601)


def log(rng, loss, lr):
    noisy = loss * np.exp(0.02 * rng.standard_normal(600))
    return {"loss": noisy, "lr": (AT, np.broadcast_to(lr, 600)[:, None].copy(), ("group 0",))}


def cosine(steps):
    return 0.1 * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2


def test_a_whole_cosine_is_healthy(make_log, rng):
    assert ScheduleTooAggressive().detect(make_log(log(rng, 2.3 * np.exp(-AT / 150), cosine(600)), steps=600)) is None


def test_a_decay_that_comes_too_early(make_log, rng):
    lr = np.concatenate([cosine(150), np.full(450, 1e-5)])
    loss = 2.3 - 1.2 * np.minimum(AT, 140) / 140
    found = ScheduleTooAggressive().detect(make_log(log(rng, loss, lr), steps=600))
    assert found.causes[0].name == "schedule_too_aggressive"
    assert 100 < found.onset < 160
    assert any(r.action is not None and r.action.arguments.get("factor", 0) > 1 for r in found.causes[0].remedies)


def test_an_early_decay_after_the_loss_had_settled_is_fine(make_log, rng):
    lr = np.concatenate([np.full(100, 0.1), cosine(50), np.full(450, 1e-5)])
    assert ScheduleTooAggressive().detect(make_log(log(rng, 0.5 + 1.8 * np.exp(-AT / 12), lr), steps=600)) is None


def restart(back):
    lr = np.concatenate([cosine(200), 8 * cosine(400)])
    loss = 0.5 + 1.8 * np.exp(-AT / 40)
    loss[200:] += 1.5 * np.exp(-np.arange(400) / back)
    return loss, lr


def test_a_restart_that_is_not_recovered_from(make_log, rng):
    found = ScheduleTooAggressive().detect(make_log(log(rng, *restart(5000)), steps=600))
    assert found.causes[0].name == "schedule_too_aggressive"
    assert abs(found.onset - 200) < 15
    assert found.causes[0].remedies[0].action.name == "rollback"


def test_a_restart_that_comes_back_is_healthy(make_log, rng):
    assert ScheduleTooAggressive().detect(make_log(log(rng, *restart(20)), steps=600)) is None


def test_a_rate_of_zero(make_log, rng):
    with pytest.raises(NotApplicable, match="positive"):
        ScheduleTooAggressive().detect(make_log(log(rng, np.ones(600), np.zeros(600)), steps=600))


def test_a_short_excess_at_the_start_is_no_peak_that_was_spent(make_log, rng):
    lr = cosine(600) * np.where(AT < 30, 24.0, 1.0)
    assert ScheduleTooAggressive().detect(make_log(log(rng, 2.3 * np.exp(-AT / 150), lr), steps=600)) is None


def test_the_end_of_a_restarts_first_cycle_is_not_spent_and_an_early_drop_is_found_soon(make_log, rng):
    twice = np.maximum(np.tile(cosine(300), 2), 1e-4)
    loss = 2.3 * np.exp(-AT / 150)
    for steps in (290, 300):
        clipped = {name: _first(column, steps) for name, column in log(rng, loss, twice).items()}
        assert ScheduleTooAggressive().detect(make_log(clipped, steps=600)) is None
    dropped = log(rng, 2.3 - 1.2 * np.minimum(AT, 30) / 60, np.where(AT < 30, 0.1, 1e-4))
    soon = {name: _first(column, 62) for name, column in dropped.items()}
    assert ScheduleTooAggressive().detect(make_log(soon, steps=600)).onset == 30


def _first(column, steps):
    return (
        tuple(part[:steps] if i < 2 else part for i, part in enumerate(column))
        if isinstance(column, tuple)
        else (column[:steps])
    )


def test_a_fall_that_even_a_spent_rate_keeps_up_shows_what_was_left(make_log, rng):
    """Twelve noisy steps before the drop tell nothing; the slow fall after it does, unless it is over."""
    lr = np.concatenate([np.full(12, 0.1), np.full(588, 2e-4)])
    start = np.where(AT <= 12, 2.3 * np.exp(0.5 * rng.standard_normal(600)), 1.0)
    falling = start * np.exp(-AT / 400)
    found = ScheduleTooAggressive().detect(make_log(log(rng, falling, lr), steps=600))
    assert found.causes[0].name == "schedule_too_aggressive"
    assert found.onset == 13
    assert ScheduleTooAggressive().detect(make_log(log(rng, start, lr), steps=600)) is None
