import numpy as np
import pytest

from dynaxx.detectors.pathological_curvature import PathologicalCurvature
from dynaxx.errors import NotApplicable

STEPS = 100


@pytest.fixture
def run(make_log, facts_of, rng):
    def run(decades, optimizer="SGD", **more):
        levels = 10.0 ** np.array(decades, dtype=float) * rng.lognormal(0, 0.2, (STEPS, len(decades)))
        return make_log({"grad_norm": levels, **more}, manifest=facts_of(len(decades), optimizer))

    return run


def test_a_dip_in_the_middle_is_found_with_the_condition_number(run):
    measured = {"sharpness": ([48], [20.0]), "trace.mean": ([48], [0.01])}
    found = PathologicalCurvature().detect(run([0, 0, -2, -2, 0, 0], **measured))
    assert found.layers == ("layer2", "layer3")
    assert found.evidence[0].value == pytest.approx(2.0, abs=0.1)
    assert found.evidence[1].value == pytest.approx(2000)
    assert found.causes[0].name == "ill_conditioned"


def test_a_slope_or_a_shallow_dip_is_not(run):
    assert PathologicalCurvature().detect(run([-3, -2.4, -1.8, -1.2, -0.6, 0])) is None
    assert PathologicalCurvature().detect(run([0, 0, -0.7, -0.7, 0, 0])) is None


def test_it_alarms_only_where_steps_follow_the_gradient_and_nothing_is_learned(run):
    stuck = {"loss": np.full(STEPS, 2.3)}
    assert PathologicalCurvature().detect(run([0, 0, -3, -3, 0, 0], **stuck)).severity == "warning"
    assert PathologicalCurvature().detect(run([0, 0, -3, -3, 0, 0], "Adam", **stuck)).severity == "note"
    learns = {"loss": np.geomspace(2, 0.1, STEPS)}
    assert PathologicalCurvature().detect(run([0, 0, -3, -3, 0, 0], **learns)).severity == "note"


def test_four_layers_have_no_middle(run):
    with pytest.raises(NotApplicable, match="middle"):
        PathologicalCurvature().detect(run([0, -2, -2, 0]))
