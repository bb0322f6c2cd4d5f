import numpy as np
import pytest

from dynaxx.detectors.slow_progress import SlowProgress
from dynaxx.errors import NotApplicable

AT = np.arange(1, 401)


def log(rng, fall, ratio, margin, agreement=0.6, steps=400):
    at = np.arange(steps)
    return {
        "loss": 2.3 * (1 - fall * at / steps) * np.exp(0.01 * rng.standard_normal(steps)),
        "update_ratio.total": (np.arange(1, steps, 4), np.full(len(np.arange(1, steps, 4)), ratio)),
        "stability_margin": (np.arange(50, steps + 1, 50), np.full(steps // 50, margin)),
        "gradient_agreement": (np.arange(2, steps, 4), np.full(len(np.arange(2, steps, 4)), agreement)),
    }


def test_a_rate_a_hundred_times_too_low(make_log, rng):
    found = SlowProgress().detect(make_log(log(rng, 0.05, 2e-5, 4000.0), steps=400))
    assert found.severity == "warning"
    assert found.causes[0].name == "learning_rate_too_low"
    assert found.causes[0].remedies[0].action.arguments["factor"] > 1


def test_a_good_rate_is_silent(make_log, rng):
    assert SlowProgress().detect(make_log(log(rng, 0.4, 5e-3, 10.0), steps=400)) is None


def test_large_steps_are_not_short_whatever_the_margin(make_log, rng):
    assert SlowProgress().detect(make_log(log(rng, 0.05, 2e-2, 4000.0), steps=400)) is None


def test_epsilon_is_told_from_the_rate(make_log, rng):
    optimizer = {"class": "AdamW", "groups": [{"lr": 1e-3, "eps": 1.0}]}
    found = SlowProgress().detect(make_log(log(rng, 0.05, 2e-5, 4000.0), {"optimizer": optimizer}, steps=400))
    assert {c.name for c in found.causes[:2]} >= {"epsilon_too_large"}


def rated(make_log, rng, rates, **more):
    return make_log({**log(rng, 0.05, 2e-5, 4000.0), "lr": (AT, rates[:, None], ("g",)), **more}, steps=400)


def test_a_warm_up_is_not_judged_and_of_a_decayed_rate_the_time_before(make_log, rng):
    with pytest.raises(NotApplicable, match="warm-up"):
        SlowProgress().detect(rated(make_log, rng, AT / 400))
    with pytest.raises(NotApplicable, match="rows"):
        SlowProgress().detect(rated(make_log, rng, np.where(AT < 50, 1.0, 0.01)))
    late = SlowProgress().detect(rated(make_log, rng, np.where(AT < 300, 1.0, 0.01)))
    assert late.spans == ((1, 299),)
    fast = {"update_ratio.total": (AT, np.where(AT < 300, 5e-3, 2e-5))}
    assert SlowProgress().detect(rated(make_log, rng, np.where(AT < 300, 1.0, 0.01), **fast)) is None


def test_the_last_margin_speaks_where_none_was_taken_since(make_log, rng):
    once = {**log(rng, 0.05, 2e-5, 4000.0), "stability_margin": ([10], [4000.0])}
    found = SlowProgress().detect(make_log(once, steps=400))
    assert found.evidence[0].value in (4000.0, pytest.approx(2e-5 * 400))


@pytest.mark.parametrize(
    ("ratio", "then", "agreement", "speaks"),
    [(0.001, 1.0, 0.8, True), (0.05, 1.0, 0.8, False), (0.001, 0.02, 0.8, False), (0.001, 1.0, 0.4, False)],
)
def test_curvature_along_the_update_speaks_at_the_rate_of_now(make_log, rng, ratio, then, agreement, speaks):
    """Updates that are short but not tiny, a margin that says nothing: a check of the same rate decides."""
    columns = {**log(rng, 0.05, 6e-4, 50.0, agreement), "lr": (np.arange(1, 401), np.ones((400, 1)), ("g",))}
    check = {"kind": "check", "name": "directional_curvature", "step": 40, "values": {"ratio": ratio, "rate": then}}
    found = SlowProgress().detect(make_log(columns, steps=400, events=(check,)))
    assert (found is not None) is speaks
    assert SlowProgress().detect(make_log(columns, steps=400)) is None


def test_a_trained_models_short_steps_are_a_note(make_log, rng):
    known = {"outputs.guess_loss": np.full(400, 3.0), "outputs.width": np.full(400, 100.0)}
    assert SlowProgress().detect(make_log(log(rng, 0.05, 2e-5, 4000.0), steps=400)).severity == "warning"
    assert SlowProgress().detect(make_log({**log(rng, 0.05, 2e-5, 4000.0), **known}, steps=400)).severity == "note"


def test_a_fall_that_leads_down_in_time_is_not_slow(make_log, rng):
    """A fifth gained evenly in 100 steps: of 400 steps in all that is four fifths, of 150 it is not half."""
    columns = log(rng, 0.2, 2e-5, 4000.0, steps=100)
    assert SlowProgress().detect(make_log(columns, steps=400)) is None
    assert SlowProgress().detect(make_log(columns, steps=150)).severity == "warning"


def test_a_fall_that_gathers_speed_is_not_slow(make_log, rng):
    """A net that leaves the plateau of its start: 8 % gained by step 100, most of it in the later half."""
    columns = log(rng, 0.0, 5e-5, 4000.0, steps=100)
    even = {**columns, "loss": 2.3 * (1 - 0.0008 * np.arange(100)) * np.exp(0.002 * rng.standard_normal(100))}
    faster = {**columns, "loss": 2.3 * (1 - 8e-8 * np.arange(100.0) ** 3) * np.exp(0.002 * rng.standard_normal(100))}
    assert SlowProgress().detect(make_log(even, steps=400)).severity == "warning"
    assert SlowProgress().detect(make_log(faster, steps=400)) is None


def test_a_line_excuses_no_updates_that_meet_hardly_any_curvature(make_log, rng):
    """A language model's first, easy half: 45 % gained by step 80, on a line to more, and then hardly anything."""
    at = np.arange(80)
    columns = log(rng, 0.0, 5e-4, 80.0, agreement=0.85, steps=80)
    columns["loss"] = (
        5.5 * (1 - 0.45 * (1 - np.exp(-at / 40)) / (1 - np.exp(-2))) * np.exp(1e-3 * rng.standard_normal(80))
    )
    columns["lr"] = np.full(80, 1e-4)
    check = {"kind": "check", "name": "directional_curvature", "step": 40, "values": {"ratio": 1e-3, "rate": 1e-4}}
    columns["directional_curvature"] = np.full(80, 1e-3)
    assert SlowProgress().detect(make_log(columns, events=[check], steps=300)).severity == "warning"
    assert SlowProgress().detect(make_log(columns, steps=300)) is None


def test_a_rate_below_zero_is_no_decay(make_log, rng):
    """A log may hold what no run has; the rest of it is judged all the same."""
    odd = log(rng, 0.05, 2e-5, 4000.0) | {"lr": np.full(400, -0.1)}
    assert SlowProgress().detect(make_log(odd, steps=400)).causes[0].name == "learning_rate_too_low"
