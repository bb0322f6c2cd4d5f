import numpy as np
import pytest

from dynaxx.detectors.update_mismatch import UpdateMismatch
from dynaxx.errors import NotApplicable

STEPS = 100


@pytest.fixture
def run(make_log, facts_of, rng):
    def run(ratios, gradients=None, optimizer="SGD"):
        count = len(ratios)
        noise = rng.lognormal(0, 0.3, (STEPS, count))
        columns = {"update_ratio": np.array(ratios) * noise}
        if gradients is not None:
            columns["grad_norm"] = np.array(gradients) * noise
        return make_log(columns, manifest=facts_of(count, optimizer))

    return run


def test_a_layer_far_from_the_others_is_named_with_its_factor(run):
    found = UpdateMismatch().detect(run([1e-3, 1e-3, 1e-6, 2e-3, 1e-3]))
    assert found.layers == ("layer2",)
    assert found.evidence[0].value == pytest.approx(-3.0, abs=0.2)
    assert found.severity == "warning"
    balance = next(r.action for c in found.causes for r in c.remedies if r.action)
    assert balance.arguments["factors"] == {"layer2": 10.0}, "bounded tenfold"


def test_a_spread_of_thirty_is_no_finding(run):
    assert UpdateMismatch().detect(run([1e-3, 3e-3, 3e-2, 2e-4, 1e-3])) is None


def test_a_layer_that_rests_is_no_matter_of_proportion(run):
    assert UpdateMismatch().detect(run([1e-3, 1e-3, 0.0, 2e-3, 1e-3])) is None


def test_gradients_that_differ_alike_point_at_conditioning(run):
    follows = UpdateMismatch().detect(run([1e-3] * 4 + [1e-6], gradients=[1, 1, 1, 1, 1e-3]))
    assert follows.causes[0].name == "ill_conditioned"
    held_back = UpdateMismatch().detect(run([1e-3] * 4 + [1e-6], gradients=[1, 1, 1, 1, 1]))
    assert held_back.causes[0].name == "initialisation_too_large"


def test_two_layers_cannot_be_compared(run):
    with pytest.raises(NotApplicable, match="compared"):
        UpdateMismatch().detect(run([1e-3, 1e-6]))
