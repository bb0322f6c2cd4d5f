import math

import numpy as np
import pytest

from dynaxx.detectors.initialisation import Initialisation
from dynaxx.errors import NotApplicable

STEPS = 40
LN10 = math.log(10)


@pytest.fixture
def run(make_log, facts_of):
    def run(guess=LN10, loss=None, classes=10, **more):
        columns = {
            "outputs.guess_loss": np.full(STEPS, guess),
            "outputs.width": np.full(STEPS, float(classes)),
            "loss": np.full(STEPS, guess if loss is None else loss),
            **more,
        }
        return make_log(columns, manifest=facts_of(5))

    return run


def spread(decades):
    return {"activations.std": np.tile(10.0 ** np.linspace(0, decades, 5), (STEPS, 1))}


def symmetry(*shares, later=None):
    values = np.tile(np.array(shares, dtype=float), (STEPS, 1))
    if later is not None:
        values[5:] = later
    return {"unit_symmetry": values}


def test_an_indifferent_start_is_no_finding(run):
    assert Initialisation().detect(run(LN10 + 0.1, **spread(-1), **symmetry(0, 0, 0, 0, 0))) is None


def test_a_decided_start_is_found_with_its_excess(run):
    found = Initialisation().detect(run(LN10 + 4))
    assert found.severity == "warning"
    assert found.evidence[0].value == pytest.approx(4)
    assert found.causes[0].name == "initialisation_too_large"
    assert Initialisation().detect(run(LN10 + 0.7)).severity == "note"


def test_large_inputs_explain_it(run):
    inputs = {"inputs.mean": np.zeros(9), "inputs.std": np.full(9, 200.0)}
    assert Initialisation().detect(run(LN10 + 4, **inputs)).causes[0].name == "inputs_not_normalised"


def test_outputs_of_a_regression_say_nothing_of_chance(run):
    assert Initialisation().detect(run(LN10 + 4, loss=0.3)) is None


@pytest.mark.parametrize(("decades", "cause"), [(5, "initialisation_too_large"), (-5, "initialisation_too_small")])
def test_signals_that_grow_or_shrink_over_the_depth_are_found(run, decades, cause):
    found = Initialisation().detect(run(**spread(decades)))
    assert found.severity == "warning"
    assert found.causes[0].name == cause
    assert found.evidence[0].value == pytest.approx(decades * 3 / 4), "the last layer is left out"


def test_a_last_layer_of_zeros_is_a_choice(run):
    values = np.tile([1.0, 1.0, 1.0, 1.0, 1e-9], (STEPS, 1))
    assert Initialisation().detect(run(**{"activations.std": values}, **symmetry(0, 0, 0, 0, 1.0))) is None


def test_equal_units_in_hidden_layers_are_found(run):
    stays = Initialisation().detect(run(**symmetry(1.0, 0, 0, 0, 0)))
    assert stays.severity == "warning"
    assert stays.layers == ("layer0",)
    assert stays.causes[0].name == "initialisation_symmetric"
    parts = Initialisation().detect(run(**symmetry(1.0, 0, 0, 0, 0, later=0.0)))
    assert parts.severity == "note", "zeros behind one skip connection part after the first update"
    assert Initialisation().detect(run(**symmetry(1.0, 1.0, 1.0, 1.0, 0, later=0.0))).severity == "warning"


def test_gradients_that_do_not_come_back_in_the_first_step_are_found(run):
    small = {"grad_norm": np.tile(10.0 ** np.linspace(-7, 0, 5), (STEPS, 1))}
    assert Initialisation().detect(run(**small)).causes[0].name == "initialisation_too_small"
    mild = {"grad_norm": np.tile(10.0 ** np.linspace(-3, 0, 5), (STEPS, 1))}
    assert Initialisation().detect(run(**mild)) is None


def test_a_log_that_begins_later_is_not_applicable(make_log):
    with pytest.raises(NotApplicable, match="first steps"):
        Initialisation().detect(make_log({"outputs.guess_loss": (range(50, 90), np.ones(40))}))


def test_a_loss_that_hardly_depends_on_the_weights(run):
    def small(gradient, size):
        norms = {"grad_norm": np.full((STEPS, 2), gradient), "parameter_norm": np.full((STEPS, 2), size)}
        return Initialisation().detect(run(**norms))

    found = small(0.1, 0.5)  # ‖g‖‖θ‖/L = 2 · 0.1 · 0.5 / ln 10
    assert found.evidence[0].value == pytest.approx(0.1 / LN10)
    assert found.causes[0].name == "initialisation_too_small"
    assert small(0.1, 5.0) is None
    assert small(1e-8, 5.0) is None, "a gradient that underflows says nothing of the weights"


def test_faint_first_weights_are_found_although_a_normalisation_hides_them(run):
    """Outputs of five layers at their usual spread, of the first one or, as in a healthy net, of none too small."""
    for share, found in ((0.002, True), (0.6, False)):
        given = {"activations.std": np.tile([share, 0.5, 0.5, 0.5, 0.5], (STEPS, 1)), "inputs.std": np.ones(STEPS)}
        finding = Initialisation().detect(run(**given))
        assert (finding is not None) is found
        if finding is not None:
            assert finding.causes[0].name == "initialisation_too_small"
            assert finding.evidence[0].value == pytest.approx(0.002)


def test_what_sigmoids_take_is_not_the_weights_doing(run, make_log, facts_of):
    """Ten logistic layers leave 4⁻¹⁰ of the gradient at best, however large the weights."""
    layers = 12
    norms = np.tile(10.0 ** np.linspace(-8, 0, layers), (STEPS, 1))
    facts = facts_of(layers)
    found = Initialisation().detect(make_log({"grad_norm": norms}, manifest=facts))
    assert found.causes[0].name == "initialisation_too_small"
    facts["model"]["modules"] = {"Sigmoid": layers}
    assert Initialisation().detect(make_log({"grad_norm": norms}, manifest=facts)) is None
