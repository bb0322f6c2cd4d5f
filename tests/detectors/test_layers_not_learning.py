import numpy as np
import pytest

from dynaxx.detectors.layers_not_learning import LayersNotLearning
from dynaxx.errors import NotApplicable

STEPS = 80


@pytest.fixture
def run(make_log, facts_of):
    def run(gradients=(1, 1, 1), updates=(1, 1, 1), frozen=(), manifest=None, loss=(2.3, 0.1), events=(), **more):
        """Three layers; gradients and updates per layer, of shape (3,) or (steps, 3)."""
        layers = [(f"layer{i}", "Linear", 1000, 0 if i in frozen else 1000) for i in range(3)]
        facts = facts_of(layers) | {"steps": STEPS}
        facts["optimizer"] |= (manifest or {}).get("optimizer", {})
        facts["facts"] = (manifest or {}).get("facts", {})
        columns = {
            "grad_norm": np.broadcast_to(gradients, (STEPS, 3)),
            "update_norm": np.broadcast_to(updates, (STEPS, 3)) * 1e-3,
            "loss": np.geomspace(*loss, STEPS),
            **more,
        }
        return make_log(columns, manifest=facts, events=events)

    return run


def test_healthy_layers_are_no_finding(run):
    assert LayersNotLearning().detect(run()) is None


def test_gradient_without_update_is_outside_the_optimizer(run):
    found = LayersNotLearning().detect(run(updates=(1, 0, 1)))
    assert found.layers == ("layer1",)
    assert found.severity == "warning"
    assert found.spans == ((1, STEPS),)
    assert found.causes[0].name == "parameters_not_in_optimizer"
    assert found.test.check == "optimizer_holds"


def test_foreign_parameters_make_it_stale_ones(run):
    outside = {"optimizer": {"outside": ["layer1.weight"], "foreign": 0}}
    stale = {"optimizer": {"outside": ["layer1.weight"], "foreign": 1000}}
    assert LayersNotLearning().detect(run(updates=(1, 0, 1), manifest=outside)).causes[0].confidence > 0.85
    assert LayersNotLearning().detect(run(updates=(1, 0, 1), manifest=stale)).causes[0].name == "stale_parameters"
    event = {"kind": "check", "step": 9, "name": "optimizer_holds", "values": {"foreign": 1000}}
    checked = LayersNotLearning().detect(run(updates=(1, 0, 1), events=[event]))
    assert checked.causes[0].name == "stale_parameters"


def test_a_layer_that_stops_in_mid_run_is_found_from_there(run):
    updates = np.ones((STEPS, 3))
    updates[40:, 2] = 0
    found = LayersNotLearning().detect(run(updates=updates))
    assert found.spans == ((41, STEPS),)
    assert found.causes[0].name == "stale_parameters"


def test_updates_left_out_for_all_layers_are_no_finding(run):
    updates = np.ones((STEPS, 3))
    updates[40:60] = 0
    assert LayersNotLearning().detect(run(updates=updates)) is None


def test_a_layer_that_rests_for_a_while_and_learns_again_is_no_finding(run):
    updates, gradients = np.ones((STEPS, 3)), np.ones((STEPS, 3))
    updates[20:50, 1] = gradients[20:50, 1] = 0
    assert LayersNotLearning().detect(run(gradients=gradients, updates=updates)) is None


def test_no_gradient_is_a_cut_and_the_activations_say_why(run):
    labels = ("layer0", "layer1", "layer2")
    means = {"activations.mean": (range(1, STEPS + 1), np.ones((STEPS, 3)), labels)}
    cut = LayersNotLearning().detect(run(gradients=(1, 0, 1), updates=(1, 0, 1), **means))
    assert cut.causes[0].name == "loss_disconnected"
    assert cut.severity == "warning"
    dead = {"activations.dead": (range(1, STEPS + 1), np.full((STEPS, 3), 1.0), labels)}
    assert LayersNotLearning().detect(run(gradients=(1, 0, 1), **means, **dead)).causes[0].name == "dead_units"
    flat = {"activations.std": (range(1, STEPS + 1), np.zeros((STEPS, 3)), labels)}
    found = LayersNotLearning().detect(run(gradients=(1, 0, 1), **means, **flat))
    assert found.causes[0].name == "initialisation_symmetric"


def test_a_layer_that_no_forward_calls_is_a_note(run):
    means = np.ones((STEPS, 3))
    means[:, 1] = np.nan
    seen = {"activations.mean": (range(1, STEPS + 1), means, ("layer0", "layer1", "layer2"))}
    found = LayersNotLearning().detect(run(gradients=(1, 0, 1), updates=(1, 0, 1), **seen))
    assert found.severity == "note"
    assert "never called" in found.evidence[0].text


def test_frozen_layers_alarm_where_nobody_freezes_on_purpose(run):
    frozen = {"gradients": (0, 1, 1), "updates": (0, 1, 1)}
    assert LayersNotLearning().detect(run(**frozen, frozen=(0,))).severity == "note"
    assert LayersNotLearning().detect(run(**frozen, frozen=(0,), loss=(2.3, 2.1))).severity == "warning"
    scratch = {"facts": {"start": None}}
    assert LayersNotLearning().detect(run(**frozen, frozen=(0,), manifest=scratch)).severity == "warning"
    behind = LayersNotLearning().detect(run(gradients=(1, 0, 1), updates=(1, 0, 1), frozen=(1,)))
    assert behind.severity == "warning"
    assert behind.causes[0].name == "frozen_parameters"


def test_another_tools_log_is_not_applicable(make_log):
    with pytest.raises(NotApplicable, match="trainable"):
        LayersNotLearning().detect(make_log({"grad_norm": np.ones((50, 2)), "update_norm": np.ones((50, 2))}))
