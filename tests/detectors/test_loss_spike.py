import numpy as np
import pytest

from dynaxx.detectors.loss_spike import LossSpike
from dynaxx.errors import NotApplicable


def stream(rng, steps=1200, noise=0.02):
    return (0.5 + 2 * np.exp(-np.arange(steps) / 300)) * np.exp(noise * rng.standard_normal(steps))


def look(log):
    return LossSpike().detect(log)


def test_a_smooth_loss_has_none(make_log, rng):
    assert look(make_log({"loss": stream(rng)})) is None


def test_one_odd_batch_is_a_note_and_the_data_are_named(make_log, rng):
    loss = stream(rng)
    loss[700] *= 3
    found = look(make_log({"loss": loss}))
    assert found.severity == "note"
    assert found.spans == ((701, 701),)
    assert found.causes[0].name in ("hard_batch", "corrupted_batch")


def test_a_lasting_spike_is_a_warning_with_its_size(make_log, rng):
    loss = stream(rng)
    loss[700:740] *= 3
    found = look(make_log({"loss": loss}))
    assert found.severity == "warning"
    first, last = found.spans[-1]
    assert abs(first - 701) <= 2
    assert abs(last - 740) <= 3
    assert found.evidence[0].value == pytest.approx(3, rel=0.1)


def test_hard_batches_that_keep_coming_are_no_incident(make_log, rng):
    loss = stream(rng, 3000) * np.where(rng.random(3000) < 0.01, 2, 1)
    found = look(make_log({"loss": loss}))
    assert found is None or not found.alarms


def test_a_gradient_that_rises_first_accuses_the_dynamics(make_log, rng):
    loss, norms = stream(rng), np.exp(0.1 * rng.standard_normal((1200, 3)))
    loss[700:740] *= 4
    log = {"loss": loss, "stability_margin": (np.arange(10, 1200, 10), np.full(119, 3.0))}
    plain = look(make_log({**log, "grad_norm": norms.copy()}))
    norms[695:740] *= 20
    log["stability_margin"] = (np.arange(10, 1200, 10), np.full(119, 0.4))
    found = look(make_log({**log, "grad_norm": norms}))
    assert found.causes[0].name == "learning_rate_too_high"
    confidence = {c.name: c.confidence for c in plain.causes}
    assert found.causes[0].confidence > confidence["learning_rate_too_high"] + 0.3


def test_a_replay_decides(make_log, rng):
    loss = stream(rng)
    loss[700:712] *= 5
    ask = {"kind": "check", "step": 715, "name": "replay_batch"}
    data = look(make_log({"loss": loss}, events=[{**ask, "values": {"reproduced": True}}]))
    motion = look(make_log({"loss": loss}, events=[{**ask, "values": {"reproduced": False}}]))
    assert data.causes[0].name in ("corrupted_batch", "data_shift")
    assert motion.causes[0].name == "learning_rate_too_high"


def test_still_high_and_above_the_start_is_critical(make_log, rng):
    loss = stream(rng, 900)
    loss[860:] *= 20
    assert look(make_log({"loss": loss})).severity == "critical"


def test_a_live_edge_is_no_lasting_spike(make_log, rng):
    loss = stream(rng, 701)
    loss[700] *= 5
    found = look(make_log({"loss": loss}))
    assert found.severity == "note"


def test_what_cannot_be_judged_says_so(make_log, rng):
    with pytest.raises(NotApplicable, match="60"):
        look(make_log({"loss": stream(rng, 50)}))
    with pytest.raises(NotApplicable, match="not positive"):
        look(make_log({"loss": stream(rng) - 3}))
    with pytest.raises(NotApplicable, match="two runs"):
        look(make_log({"loss": (np.r_[np.arange(1, 101), np.arange(1, 101)], stream(rng, 200))}))
    with pytest.raises(NotApplicable, match="no rows between the steps 200 and 5000"):
        look(make_log({"loss": (np.r_[np.arange(1, 201), np.arange(5000, 5010)], stream(rng, 210))}))


def test_a_loss_out_of_nowhere_accuses_the_batch_whatever_it_set_off(make_log, rng):
    loss = stream(rng)
    loss[700:705] *= (30, 3_000, 100_000, 10_000, 1_000)  # only the first was the batch's own
    loss[705:720] *= 30
    found = look(make_log({"loss": loss, "lr": np.full(1200, 0.1)}))
    assert found.causes[0].name == "corrupted_batch"
    climb = stream(rng)
    climb[700:712] *= 2.0 ** np.arange(1, 13)
    found = look(make_log({"loss": climb, "lr": np.full(1200, 0.1)}))
    assert found.causes[0].name == "learning_rate_too_high"


def test_a_rise_that_is_over_is_an_alarm_where_it_cost_a_third_and_a_young_one_is_not_yet(make_log, rng):
    def severity(height, length, end):
        loss = 0.1 + 2 * np.exp(-np.arange(600) / 60) + 0.005 * rng.standard_normal(600)
        loss[400 : 400 + length] += height
        return look(make_log({"loss": loss[:end]})).severity

    assert severity(0.3, 12, 600) == "note"
    assert severity(1.5, 12, 600) == "warning"
    assert severity(1.5, 60, 405) == "note"
    assert severity(1.5, 60, 420) != "note"
