import numpy as np
import pytest

from dynaxx.detectors.epsilon_dominates import EpsilonDominates
from dynaxx.errors import NotApplicable

STEPS = 60


@pytest.fixture
def run(make_log, facts_of):
    def run(share, zeros=None, eps=1e-3, loss=(2.3, 2.0)):
        columns = {"optimizer_state.epsilon_dominated": np.broadcast_to(share, (STEPS, 2))}
        columns["loss"] = np.geomspace(*loss, STEPS)
        if zeros is not None:
            columns["grad_zeros"] = np.broadcast_to(zeros, (STEPS, 2))
        layers = [("layer0", "Linear", 3000, 3000), ("layer1", "Linear", 1000, 1000)]
        return make_log(columns, manifest=facts_of(layers, "Adam", eps=eps))

    return run


def test_most_coordinates_under_a_large_epsilon_are_found(run):
    found = EpsilonDominates().detect(run((0.8, 0.4)))
    assert found.evidence[0].value == pytest.approx((0.8 * 3 + 0.4) / 4)
    assert found.severity == "warning"
    assert found.layers == ("layer0",)
    assert found.causes[0].name == "epsilon_too_large"


def test_less_than_half_is_not(run):
    assert EpsilonDominates().detect(run((0.5, 0.3))) is None


def test_coordinates_without_a_gradient_do_not_count(run):
    # Half of layer0 is dead: (0.8 − 0.5)·3000 + 0.1·1000 of the 2500 that live.
    assert EpsilonDominates().detect(run((0.8, 0.1), zeros=(0.5, 0.0))) is None
    alive = EpsilonDominates().detect(run((0.95, 0.1), zeros=(0.5, 0.0)))
    assert alive.evidence[0].value == pytest.approx((0.45 * 3000 + 100) / 2500)


def test_a_usual_epsilon_points_at_the_gradients(run):
    assert EpsilonDominates().detect(run(0.9, eps=1e-8)).causes[0].name == "vanishing_gradients"
    assert EpsilonDominates().detect(run(0.9, eps=1e-8, loss=(2, 0.01))).severity == "note"


def test_a_short_log_is_not_applicable(make_log):
    with pytest.raises(NotApplicable, match="rows"):
        EpsilonDominates().detect(make_log({"optimizer_state.epsilon_dominated": np.ones((3, 2))}))
