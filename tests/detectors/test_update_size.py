import numpy as np
import pytest

from dynaxx.detectors.update_size import UpdateSize
from dynaxx.errors import NotApplicable

STEPS = 100


@pytest.fixture
def run(make_log, facts_of, rng):
    def run(ratio, loss=2.3, optimizer="SGD", **more):
        values = np.broadcast_to(ratio, (STEPS, 4)) * rng.lognormal(0, 0.3, (STEPS, 4))
        columns = {"update_ratio": values, "loss": np.broadcast_to(loss, (STEPS,)), **more}
        return make_log(columns, manifest=facts_of(4, optimizer, momentum=0.9))

    return run


@pytest.mark.parametrize(
    ("ratio", "cause", "up"), [(0.5, "learning_rate_too_high", False), (1e-6, "learning_rate_too_low", True)]
)
def test_steps_outside_the_band_are_found(run, ratio, cause, up):
    found = UpdateSize().detect(run(ratio))
    assert found.severity == "warning"
    assert 10 ** found.evidence[0].value == pytest.approx(ratio, rel=0.2)
    assert found.causes[0].name == cause
    assert (found.causes[0].remedies[0].action.arguments["factor"] > 1) == up


@pytest.mark.parametrize("ratio", [0.05, 1e-3, 3e-4])
def test_steps_within_the_band_are_not(run, ratio):
    assert UpdateSize().detect(run(ratio)) is None


def test_one_layer_outside_is_no_matter_of_size(run):
    assert UpdateSize().detect(run(np.array([0.5, 1e-3, 1e-3, 1e-3]))) is None


def test_small_steps_of_warm_up_and_decay_are_no_finding(run):
    rate = np.concatenate([np.geomspace(1e-6, 1e-3, 50), np.geomspace(1e-3, 1e-7, 50)])
    assert UpdateSize().detect(run(rate[:, None], lr=rate[:, None])) is None
    assert UpdateSize().detect(run(rate[:, None])) is not None


def test_a_run_that_learns_all_the_same_gets_a_note(run):
    assert UpdateSize().detect(run(3e-5, loss=np.geomspace(2, 0.5, STEPS))).severity == "note"


def test_epsilon_and_clipping_explain_small_steps(run):
    dominated = np.full((STEPS, 4), 0.9)
    names = [c.name for c in UpdateSize().detect(run(1e-5, **{"optimizer_state.epsilon_dominated": dominated})).causes]
    assert names[0] == "epsilon_too_large"


def test_layers_that_never_move_are_not_applicable(run):
    with pytest.raises(NotApplicable, match="no layer"):
        UpdateSize().detect(run(0.0))


def test_no_gradient_at_all_was_lost_on_the_way(run):
    found = UpdateSize().detect(run(1e-6, grad_norm=np.zeros((STEPS, 4))))
    assert found.causes[0].name == "underflow"


def test_large_steps_that_have_halved_the_loss_and_short_ones_of_a_trained_model_are_notes(run):
    assert UpdateSize().detect(run(0.2, loss=np.geomspace(2, 0.8, STEPS))).severity == "note"
    assert UpdateSize().detect(run(0.2, loss=np.geomspace(2, 1.5, STEPS))).severity == "warning"
    known = {"outputs.guess_loss": np.full(STEPS, 3.0), "outputs.width": np.full(STEPS, 10.0)}
    assert UpdateSize().detect(run(1e-6, loss=0.5, **known)).severity == "note"
    assert UpdateSize().detect(run(0.5, loss=0.5, **known)).severity == "warning"


def test_a_quarter_of_the_weights_a_step_is_an_alarm_whatever_was_gained(run):
    assert UpdateSize().detect(run(0.3, loss=np.geomspace(2, 0.2, STEPS))).severity == "warning"


def test_large_steps_that_gain_their_part_of_half_the_loss_are_a_note_so_far(make_log, facts_of):
    """20 of 400 steps are half of the first tenth: a quarter of the loss will do there, and no longer at step 100."""

    def severity(gained, steps):
        columns = {"update_ratio": np.full((steps, 4), 0.2), "loss": np.linspace(2, 2 * (1 - gained), steps)}
        return UpdateSize().detect(make_log(columns, manifest={**facts_of(4), "steps": 400})).severity

    assert severity(0.35, 20) == "note"
    assert severity(0.1, 20) == "warning"
    assert severity(0.35, 100) == "warning"
