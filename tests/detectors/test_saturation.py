import numpy as np
import pytest

from dynaxx.detectors.saturation import Saturation
from dynaxx.errors import NotApplicable

STEPS = 80
LABELS = ("0", "tanh1", "2", "tanh3", "sigmoid_out")


def shares(first, second, output=0.0):
    values = np.full((STEPS, 5), np.nan)
    values[:, 1], values[:, 3], values[:, 4] = first, second, output
    return {"activations.saturated": (range(1, STEPS + 1), values, LABELS)}


def test_a_saturated_layer_is_found(make_log):
    found = Saturation().detect(make_log(shares(0.1, 0.8)))
    assert found.layers == ("tanh3",)
    assert found.severity == "warning"
    assert found.evidence[0].value == pytest.approx(0.8)


def test_a_third_and_a_decided_output_are_no_finding(make_log):
    assert Saturation().detect(make_log(shares(0.35, 0.3))) is None
    assert Saturation().detect(make_log(shares(0.1, 0.1, output=1.0))) is None


def test_when_it_began_and_the_inputs_decide_the_cause(make_log):
    assert Saturation().detect(make_log(shares(0.8, 0.2))).causes[0].name == "initialisation_too_large"
    inputs = {"inputs.mean": np.zeros(9), "inputs.std": np.full(9, 300.0)}
    assert Saturation().detect(make_log(shares(0.8, 0.2) | inputs)).causes[0].name == "inputs_not_normalised"
    late = np.where(np.arange(STEPS) < 20, 0.05, 0.9)
    large = {"update_ratio": np.full((STEPS, 5), 0.5)}
    assert Saturation().detect(make_log(shares(late, 0.1) | large)).causes[0].name == "learning_rate_too_high"
    assert Saturation().detect(make_log(shares(late, 0.1))).causes[0].name == "saturated_activations"


def test_a_model_without_bounded_activations_is_not_applicable(make_log):
    with pytest.raises(NotApplicable, match="bounded"):
        Saturation().detect(make_log({"activations.saturated": np.full((40, 3), np.nan)}))
