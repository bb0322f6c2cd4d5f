import numpy as np
import pytest

from dynaxx.detectors._read import LOSS, unbroken
from dynaxx.detectors._standstill import standstill
from dynaxx.detectors.plateau import Plateau

STEPS = 400
AT = np.arange(1, STEPS + 1)
LOOKS = np.arange(20, STEPS + 1, 20)


def log(rng, floor=0.6, ends=None, rate=1.0, held=True):
    """A loss that is down to its floor within 30 steps, and then goes on to `ends` by the last one."""
    ends = floor if ends is None else ends
    mean = np.interp(AT, [1, 30, STEPS], [1.0, floor, ends])
    columns = {"loss": 5.5 * mean * np.exp(0.01 * rng.standard_normal(STEPS)), "lr": np.linspace(1.0, rate, STEPS)}
    return columns | ({"val_loss": (LOOKS, 5.5 * np.interp(LOOKS, AT, mean))} if held else {})


def told(make_log, columns):
    run = make_log(columns, steps=STEPS)
    return standstill(run, unbroken(run, LOSS, 120))


def test_what_learned_the_easy_part_in_thirty_steps_and_nothing_since(make_log, rng):
    found = told(make_log, log(rng))
    assert found.since == 50
    assert abs(found.training) < 0.02
    assert found.validation == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ({"ends": 0.55}, "a twelfth was gained since"),
        ({"floor": 0.2}, "little is left"),
        ({"floor": 0.97}, "nothing was ever learned, which is another finding"),
        ({"rate": 0.1}, "the rate was decayed"),
        ({"held": False}, "training alone is too noisy a witness"),
    ],
)
def test_what_is_no_standstill(make_log, rng, kind, why):
    assert told(make_log, log(rng, **kind)) is None, why


def test_it_takes_four_tenths_of_the_plan(make_log, rng):
    columns = log(rng)
    early = {
        "loss": columns["loss"][:150],
        "lr": columns["lr"][:150],
        "val_loss": (LOOKS[:7], columns["val_loss"][1][:7]),
    }
    run = make_log(early, steps=STEPS)
    assert standstill(run, unbroken(run, LOSS, 120)) is None


def test_a_plateau_from_early_on_is_an_alarm_with_its_evidence(make_log, rng):
    found = Plateau().detect(make_log(log(rng), steps=STEPS))
    assert (found.severity, found.onset) == ("warning", 50)
    assert "hardly fallen since step 50" in found.title
    assert any("since step 50 training has gained" in each.text for each in found.evidence)
    assert {"shuffled_labels", "learning_rate_too_high"} <= {cause.name for cause in found.causes}
    known = {"outputs.guess_loss": np.full(STEPS, 12.0), "outputs.width": np.full(STEPS, 65536.0)}
    assert Plateau().detect(make_log(log(rng) | known, steps=STEPS)).severity == "note", "a model trained before"
