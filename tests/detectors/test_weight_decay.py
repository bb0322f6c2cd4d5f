import numpy as np
import pytest

from dynaxx.detectors.weight_decay import WeightDecay
from dynaxx.errors import NotApplicable

STEPS = 400


@pytest.fixture
def run(make_log, facts_of, rng):
    def run(decay, optimizer="AdamW", rate=3e-3, shrunk=0.5, loss=1.3, **group):
        at = np.arange(1, STEPS + 1)
        falling = loss + (2.3 - loss) * np.exp(-at / 30)
        return make_log(
            {
                "loss": falling * np.exp(0.02 * rng.standard_normal(STEPS)),
                "lr": (at, np.full((STEPS, 1), rate), ("group 0",)),
                "parameter_norm": np.linspace(1, shrunk, STEPS)[:, None] * np.array([[6.0, 8.0]]),
            },
            manifest=facts_of(2, optimizer, weight_decay=decay, **group),
        )

    return run


def test_a_decay_that_outweighs_the_gradient_is_named_with_its_half_life(run):
    found = WeightDecay().detect(run(10.0))
    assert found.severity == "warning"
    assert found.causes[0].name == "weight_decay_too_high"
    assert found.evidence[0].value == pytest.approx(0.03)
    assert "in 23" in found.title, "ln 2 / 0.03"


def test_it_is_a_note_where_the_weights_hold_or_the_run_learns(run):
    assert WeightDecay().detect(run(5.0, shrunk=1.1)).severity == "note"
    assert WeightDecay().detect(run(10.0, loss=0.1)).severity == "note"


def test_weights_that_are_forgotten_in_35_steps_need_not_shrink_for_an_alarm(run):
    found = WeightDecay().detect(run(7.0, shrunk=1.1))
    assert (found.severity, found.causes[0].name) == ("warning", "weight_decay_too_high")


def test_usual_decays_and_grokking_are_silent(run):
    assert WeightDecay().detect(run(0.1)) is None
    assert WeightDecay().detect(run(2.0)) is None
    assert WeightDecay().detect(run(0.0)) is None
    assert WeightDecay().detect(run(0.05, "SGD", rate=0.1)) is None


def test_decay_through_second_moments_is_another_matter(run):
    with pytest.raises(NotApplicable, match="not of Adam"):
        WeightDecay().detect(run(10.0, "Adam"))
    assert WeightDecay().detect(run(10.0, "Adam", decoupled_weight_decay=True)) is not None
