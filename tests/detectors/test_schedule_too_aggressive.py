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


def restart(back, peak=8):
    lr = np.concatenate([cosine(200), peak * cosine(400)])
    loss = 0.5 + 1.8 * np.exp(-AT / 40)
    loss[200:] += 1.5 * np.exp(-np.arange(400) / back)
    return loss, lr


def test_a_restart_that_is_not_recovered_from(make_log, rng):
    found = ScheduleTooAggressive().detect(make_log(log(rng, *restart(5000)), steps=600))
    assert found.causes[0].name == "schedule_too_aggressive"
    assert abs(found.onset - 200) < 15
    assert found.causes[0].remedies[0].action.name == "rollback"


def test_a_restart_that_comes_back_is_healthy(make_log, rng):
    assert ScheduleTooAggressive().detect(make_log(log(rng, *restart(20, peak=1)), steps=600)) is None


def test_a_restart_beyond_the_first_peak_that_comes_back_is_a_note(make_log, rng):
    assert ScheduleTooAggressive().detect(make_log(log(rng, *restart(20)), steps=600)).severity == "note"


def bumped(rate, loss, steps=20):
    high = np.isin(AT, np.arange(300, 300 + steps))
    return np.where(high, loss, 0.5 + 1.8 * np.exp(-AT / 40)), np.where(high, rate, 0.1)


def clipped(columns, steps):
    return {name: _first(column, steps) for name, column in columns.items()}


def test_a_rate_beyond_any_before_is_named_while_it_lasts_and_noted_once_the_loss_is_back(make_log, rng):
    columns = log(rng, *bumped(2.0, 0.8))
    assert ScheduleTooAggressive().detect(make_log(clipped(columns, 305), steps=600)) is None
    found = ScheduleTooAggressive().detect(make_log(clipped(columns, 310), steps=600))
    assert (found.severity, found.onset, found.causes[0].name) == ("warning", 300, "schedule_too_aggressive")
    assert "20-fold at step 300, to 20 times any before" in found.title
    over = ScheduleTooAggressive().detect(make_log(columns, steps=600))
    assert (over.severity, over.spans) == ("note", ((300, 319),))


@pytest.mark.parametrize(
    ("rate", "loss", "why"),
    [(2.0, 0.5, "the loss bears it"), (0.19, 0.8, "the rate is less than twice any before")],
)
def test_no_bump(make_log, rng, rate, loss, why):
    columns = log(rng, *bumped(rate, loss))
    assert ScheduleTooAggressive().detect(make_log(clipped(columns, 315), steps=600)) is None, why


def test_a_restart_to_the_first_peak_is_no_bump(make_log, rng):
    loss = np.where(AT > 300, 0.9, 0.5 + 1.8 * np.exp(-AT / 40))
    columns = log(rng, loss, np.tile(cosine(300), 2))
    assert ScheduleTooAggressive().detect(make_log(clipped(columns, 315), steps=600)) is None


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
    """Eighty noisy steps before the drop tell nothing; the slow fall after it does, unless it is over."""
    lr = np.concatenate([np.full(80, 0.1), np.full(520, 2e-4)])
    start = np.where(AT <= 80, 2.3 * np.exp(0.5 * rng.standard_normal(600)), 1.0)
    falling = start * np.exp(-AT / 400)
    found = ScheduleTooAggressive().detect(make_log(log(rng, falling, lr), steps=600))
    assert found.causes[0].name == "schedule_too_aggressive"
    assert found.onset == 81
    assert ScheduleTooAggressive().detect(make_log(log(rng, start, lr), steps=600)) is None


def test_a_rate_that_is_spent_before_a_trend_could_be_seen_is_found_whatever_the_loss_does(make_log, rng):
    lr = np.concatenate([np.full(40, 0.1), np.full(560, 2e-4)])
    loss = 1.0 + 1.3 * np.exp(-AT / 4)
    found = ScheduleTooAggressive().detect(make_log(log(rng, loss, lr), steps=600))
    assert (found.onset, found.causes[0].name) == (41, "schedule_too_aggressive")
    longer = np.where(AT <= 100, 0.1, lr)
    assert ScheduleTooAggressive().detect(make_log(log(rng, loss, longer), steps=600)) is None
