import numpy as np

from dynaxx.detectors.erratic_validation import ErraticValidation

AT = np.arange(5, 401, 5)
NORMALISED = {"model": {"layers": [{"name": "a", "kind": "BatchNorm2d"}]}}
PLAIN = {"model": {"layers": [{"name": "a", "kind": "Linear"}]}}


def log(rng, noise):
    steps = np.arange(400)
    return {
        "loss": 2.3 * np.exp(-steps / 300) * np.exp(0.05 * rng.standard_normal(400)),
        "val_loss": (AT, np.exp(noise * rng.standard_normal(80))),
    }


def test_jumps_without_progress_are_an_alarm(make_log, rng):
    found = ErraticValidation().detect(make_log(log(rng, 0.6), PLAIN))
    assert found is not None
    assert found.causes[0].name == "learning_rate_too_high"


def test_normalisation_is_named_where_there_is_one(make_log, rng):
    assert ErraticValidation().detect(make_log(log(rng, 1.0), NORMALISED)).causes[0].name == "train_eval_mismatch"


def test_a_live_check_parts_the_two(make_log, rng):
    event = {"kind": "check", "step": 300, "name": "eval_train_gap", "values": {"ratio": 1.02}}
    found = ErraticValidation().detect(make_log(log(rng, 1.0), NORMALISED, [event]))
    plain = ErraticValidation().detect(make_log(log(rng, 1.0), NORMALISED))
    assert found.causes[0].confidence < plain.causes[0].confidence or found.causes[0].name != plain.causes[0].name


def test_a_calm_validation_and_a_noisy_training_are_not(make_log, rng):
    assert ErraticValidation().detect(make_log(log(rng, 0.05), PLAIN)) is None
    columns = log(rng, 0.6)
    columns["loss"] = np.repeat(np.exp(0.6 * rng.standard_normal(40)), 10)
    assert ErraticValidation().detect(make_log(columns, PLAIN)) is None


def test_two_leaps_are_not_its_typical_change(make_log, rng):
    columns = log(rng, 0.05)
    values = columns["val_loss"][1]
    values *= np.exp(-AT / 300)
    values[[60, 66]] *= 7
    assert ErraticValidation().detect(make_log(columns, PLAIN)) is None
    values[50::2] *= 7
    assert ErraticValidation().detect(make_log(columns, PLAIN)).evidence[0].value > 1
