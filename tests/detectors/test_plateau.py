import numpy as np
import pytest

from dynaxx.detectors.plateau import Plateau
from dynaxx.errors import NotApplicable


def settled(rng, steps=800):
    return 0.5 + 2 * np.exp(-np.arange(steps) / 40) + 0.005 * rng.standard_normal(steps)


def sparse(value, steps=800):
    at = np.arange(2, steps, 4)
    return at, np.full(len(at), value)


def test_a_falling_loss_is_none(make_log, rng):
    loss = 2.5 - 2 * np.arange(800) / 800 + 0.02 * rng.standard_normal(800)
    assert Plateau().detect(make_log({"loss": loss}, steps=1000)) is None


def test_a_settled_loss_is_a_note_with_the_odometer(make_log, rng):
    found = Plateau().detect(make_log({"loss": settled(rng)}, steps=1000))
    assert found.severity == "note"
    assert "could be seen in" in found.title


def test_noise_floor_against_converged(make_log, rng):
    at = np.arange(1, 801)
    loss = settled(rng)
    noise = {"gradient_noise": sparse(400.0), "effective_batch": np.full(800, 32.0), "gradient_agreement": sparse(0.0)}
    constant = {"lr": (at, np.full((800, 1), 0.1), ("g",))}
    decayed = {"lr": (at, np.geomspace(0.1, 1e-5, 800)[:, None], ("g",))}
    floor = Plateau().detect(make_log({"loss": loss, **noise, **constant}, steps=1000))
    done = Plateau().detect(make_log({"loss": loss, **noise, **decayed}, steps=800))
    assert floor.causes[0].name == "noise_floor"
    assert done.causes[0].name == "converged"


def test_agreeing_gradients_make_a_valley(make_log, rng):
    norms = np.where(np.arange(800) < 60, 1.0, 0.02)[:, None]
    log = {"loss": settled(rng), "gradient_agreement": sparse(0.8), "grad_norm": (np.arange(1, 801), norms, ("a",))}
    assert Plateau().detect(make_log(log, steps=1000)).causes[0].name == "flat_valley"


def test_downward_curvature_makes_a_saddle(make_log, rng):
    curved = (np.arange(500, 801, 20), np.full(16, -0.3))
    found = Plateau().detect(make_log({"loss": settled(rng), "directional_curvature": curved}, steps=1000))
    assert "saddle" in [c.name for c in found.causes[:2]]


def test_nothing_learned_is_an_alarm_and_its_kind_is_told(make_log, rng):
    loss = 2.303 + 0.01 * rng.standard_normal(400)
    moving = {"update_ratio.total": sparse(5e-3, 400), "gradient_agreement": sparse(0.02, 400)}
    still = {"update_ratio.total": sparse(0.0, 400), "grad_norm": (np.arange(1, 401), np.zeros((400, 2)), ("a", "b"))}
    labels = Plateau().detect(make_log({"loss": loss, **moving}, steps=800))
    apart = Plateau().detect(make_log({"loss": loss, **still}, steps=800))
    assert (labels.severity, apart.severity) == ("warning", "warning")
    assert labels.causes[0].name == "shuffled_labels"
    assert [cause.name for cause in apart.causes[:2]] == ["underflow", "loss_disconnected"]


def test_a_slow_fall_is_not_called_a_plateau_from_the_start(make_log, rng):
    loss = 2.3 * (1 - 0.04 * np.arange(400) / 400) + 0.002 * rng.standard_normal(400)
    found = Plateau().detect(make_log({"loss": loss}, steps=400))
    assert found is None or not found.alarms


def test_too_short(make_log, rng):
    with pytest.raises(NotApplicable, match="120"):
        Plateau().detect(make_log({"loss": settled(rng, 100)}))


def test_a_trained_model_that_stands_still_is_no_alarm(make_log, rng):
    steps = 400
    known = {"outputs.guess_loss": np.full(steps, 3.0), "outputs.width": np.full(steps, 8.0)}
    loss = 0.77 + 0.02 * rng.standard_normal(steps)
    assert Plateau().detect(make_log({"loss": loss}, steps=steps)).severity == "warning"
    found = Plateau().detect(make_log({"loss": loss, **known}, steps=steps))
    assert found.severity == "note"
    assert "shuffled_labels" not in [cause.name for cause in found.causes]


def test_evaluations_that_fall_one_by_one_see_what_batches_do_not(make_log, rng):
    loss = 2.303 + 0.01 * rng.standard_normal(400)
    at = np.arange(50, 401, 50)
    falls = {"val_loss": (at, 2.3 - 0.1 * (at / 400) ** 2)}
    wanders = {"val_loss": (at, 2.3 + 0.05 * (-1.0) ** np.arange(8))}
    assert Plateau().detect(make_log({"loss": loss, **falls}, steps=800)).severity == "note"
    assert Plateau().detect(make_log({"loss": loss, **wanders}, steps=800)).severity == "warning"
