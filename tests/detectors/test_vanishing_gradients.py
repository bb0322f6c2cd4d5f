import numpy as np
import pytest

from dynaxx.detectors.vanishing_gradients import VanishingGradients
from dynaxx.errors import NotApplicable

STEPS = 100


@pytest.fixture
def run(make_log, facts_of, rng):
    def run(decades, optimizer="SGD", ratios=None, **more):
        """Eight layers whose gradients fall evenly by so many decades from the last to the first."""
        depth = np.linspace(-decades, 0, 8)
        noise = rng.lognormal(0, 0.2, (STEPS, 8))
        columns = {"grad_norm": 10**depth * noise, **more}
        if ratios is not None:
            columns["update_ratio"] = np.broadcast_to(ratios, (STEPS, 8)) * noise
        return make_log(columns, manifest=facts_of(8, optimizer))

    return run


def test_a_drop_over_the_depth_is_found_with_its_size_and_layers(run):
    found = VanishingGradients().detect(run(6.0))
    # Thirds of the depth: two layers each, whose means are 6/7 of a decade nearer than the ends.
    assert found.evidence[0].value == pytest.approx(6 - 6 / 7, abs=0.1)
    assert found.severity == "warning"
    assert found.spans == ((1, STEPS),)
    assert found.layers[:3] == ("layer0", "layer1", "layer2")
    assert "layer7" not in found.layers
    assert found.causes[0].name == "vanishing_gradients"


def test_a_decade_and_a_half_is_no_finding(run):
    assert VanishingGradients().detect(run(1.8)) is None


def test_it_is_a_note_where_the_optimizer_makes_up_for_it(run):
    assert VanishingGradients().detect(run(6.0, "Adam")).severity == "note"
    assert VanishingGradients().detect(run(6.0, "Adam", ratios=np.full(8, 1e-3))).severity == "note"


def test_it_is_a_warning_under_adam_where_the_updates_starve_too(run):
    starved = np.array([1e-9, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-3, 1e-3])
    found = VanishingGradients().detect(run(6.0, "Adam", ratios=starved))
    assert found.severity == "warning"
    assert found.evidence[-1].value == pytest.approx(1e-6, rel=0.3)


def test_the_cause_follows_the_activations(run):
    labels = tuple(f"act{i}" for i in range(6))
    flat = np.full((STEPS, 6), 0.9)
    saturated = VanishingGradients().detect(run(6.0, **{"activations.saturated": (range(1, STEPS + 1), flat, labels)}))
    assert saturated.causes[0].name == "saturated_activations"
    quiet = np.broadcast_to(10.0 ** -np.arange(6), (STEPS, 6))
    small = VanishingGradients().detect(run(6.0, **{"activations.std": (range(1, STEPS + 1), quiet, labels)}))
    assert "initialisation_too_small" in [cause.name for cause in small.causes[:2]]


def test_an_embedding_and_a_normalisation_are_no_part_of_the_depth(make_log, facts_of):
    values = np.tile([1e-9, 1.0, 1e-9, 1.0, 1.0], (STEPS, 1))
    kinds = ["Embedding", "Linear", "LayerNorm", "Linear", "Linear"]
    layers = [(f"layer{i}", kind, 1000, 1000) for i, kind in enumerate(kinds)]
    assert VanishingGradients().detect(make_log({"grad_norm": values}, manifest=facts_of(layers))) is None


def test_a_shallow_or_unknown_model_or_a_short_log_is_not_applicable(make_log, facts_of):
    with pytest.raises(NotApplicable, match="at least 3 layers"):
        VanishingGradients().detect(make_log({"grad_norm": np.ones((STEPS, 2))}, manifest=facts_of(2)))
    with pytest.raises(NotApplicable, match="what kind"):
        VanishingGradients().detect(make_log({"grad_norm": np.ones((STEPS, 4))}))
    with pytest.raises(NotApplicable, match="at least 20"):
        VanishingGradients().detect(make_log({"grad_norm": np.ones((3, 4))}, manifest=facts_of(4)))


def test_what_stops_high_is_not_helped_by_the_optimizer(run):
    stopped = {"loss": np.full(STEPS, 2.0)}
    assert VanishingGradients().detect(run(6.0, "Adam", **stopped)).severity == "note", "the plan is unknown"
    log = run(6.0, "Adam", **stopped)
    log.manifest["steps"] = STEPS
    assert VanishingGradients().detect(log).severity == "warning"


def test_no_sigmoid_is_blamed_where_no_activation_can_saturate(run):
    def remedy(**more):
        return VanishingGradients().detect(run(6.0, **more)).causes[0].remedies[0].text

    saturable = {"activations.saturated": np.zeros((STEPS, 8))}
    assert "sigmoid" in remedy(**saturable)
    assert "sigmoid" not in remedy(**{"activations.saturated": np.full((STEPS, 8), np.nan)})
