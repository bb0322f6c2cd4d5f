import numpy as np
import pytest

from dynaxx.detectors._converged import signs
from dynaxx.detectors.convergence import Convergence
from dynaxx.errors import NotApplicable

AT = np.arange(20, 1001, 20)


def log(rng, **changes):
    steps = np.arange(1000)
    columns = {
        "loss": (0.3 + 2 * np.exp(-steps / 60)) * np.exp(0.02 * rng.standard_normal(1000)),
        "val_loss": (AT, (0.4 + 2 * np.exp(-AT / 60)) * np.exp(0.002 * rng.standard_normal(50))),
        "grad_norm": (steps + 1, np.exp(0.2 * rng.standard_normal((1000, 3))), ("a", "b", "c")),
        "sharpness": (AT, 4.0 * np.exp(0.02 * rng.standard_normal(50))),
        "stability_margin": (AT, np.full(50, 5.0)),
        "samples.agreement": (AT, np.full(50, 0.999)),
    }
    return {name: column for name, column in {**columns, **changes}.items() if column is not None}


def states(found):
    return [sign.stable for sign in found]


def test_five_of_five(make_log, rng):
    found = Convergence().detect(make_log(log(rng), steps=1000))
    assert found.severity == "note"
    assert found.title.startswith("5 of 5")
    assert found.causes[0].name == "converged"
    assert found.evidence[-1].text.startswith("odometer")


def test_each_signal_falls_by_itself(make_log, rng):
    steps = np.arange(1000)
    falls = {
        0: {"loss": np.where(steps > 930, 1.5, 1.0) * np.exp(0.02 * rng.standard_normal(1000))},
        1: {"val_loss": (AT, 2 - AT / 800)},
        2: {
            "grad_norm": (
                steps + 1,
                np.exp(0.1 * rng.standard_normal((1000, 1))) * np.where(steps > 900, 3, 1)[:, None],
                ("a",),
            )
        },
        3: {"sharpness": (AT, np.exp(AT / 200))},
        4: {"samples.agreement": (AT, np.full(50, 0.8))},
    }
    for place, change in falls.items():
        found = states(signs(make_log(log(rng, **change), steps=1000)))
        assert found[place] is False, (place, found)
        assert sum(map(bool, found)) == 4


def test_a_collapsed_gradient_has_not_settled(make_log, rng):
    steps = np.arange(1000)
    norms = np.exp(0.1 * rng.standard_normal((1000, 1))) * np.where(steps > 600, 1e-5, 1)[:, None]
    assert states(signs(make_log(log(rng, grad_norm=(steps + 1, norms, ("a",))), steps=1000)))[2] is False


def test_four_of_five_suffice_and_three_do_not(make_log, rng):
    one = log(rng, val_loss=(AT, 2 - AT / 800))
    assert Convergence().detect(make_log(one, steps=1000)).title.startswith("4 of 5")
    two = {**one, "sharpness": (AT, np.exp(AT / 200))}
    assert Convergence().detect(make_log(two, steps=1000)) is None


def test_where_signals_are_missing_all_but_one_and_three_at_least(make_log, rng):
    bare = log(rng, sharpness=None, stability_margin=None, **{"samples.agreement": None})
    assert Convergence().detect(make_log(bare, steps=1000)).title.startswith("3 of 3")
    del bare["val_loss"]
    with pytest.raises(NotApplicable, match="2 of 5 signals"):
        Convergence().detect(make_log(bare, steps=1000))


def test_what_never_learned_has_not_converged(make_log, rng):
    flat = log(rng, loss=2.3 * np.exp(0.01 * rng.standard_normal(1000)))
    assert Convergence().detect(make_log(flat, steps=1000)) is None


def test_early_is_not_judged(make_log, rng):
    with pytest.raises(NotApplicable, match="too early"):
        Convergence().detect(make_log(log(rng), steps=100_000))
