import numpy as np
import pytest

from dynaxx.detectors.coupled_weight_decay import CoupledWeightDecay
from dynaxx.errors import NotApplicable

STEPS = 50


@pytest.fixture
def run(make_log, facts_of):
    def run(optimizer="Adam", decay=0.1, gradient=1.0, **group):
        columns = {"grad_norm": np.full((STEPS, 2), gradient), "parameter_norm": np.full((STEPS, 2), 20.0)}
        return make_log(columns, manifest=facts_of(2, optimizer, weight_decay=decay, **group))

    return run


def test_the_share_of_the_regularisation_decides(run):
    strong = CoupledWeightDecay().detect(run())
    assert strong.severity == "warning"
    assert strong.evidence[1].value == pytest.approx(0.1 * 20 / 1)
    assert strong.causes[0].name == "weight_decay_coupled"
    assert CoupledWeightDecay().detect(run(decay=1e-3)).severity == "note"


@pytest.mark.parametrize(
    "options", [{"optimizer": "AdamW"}, {"optimizer": "SGD"}, {"decay": 0.0}, {"decoupled_weight_decay": True}]
)
def test_decoupled_or_no_decay_is_no_finding(run, options):
    assert CoupledWeightDecay().detect(run(**options)) is None


def test_an_unknown_optimizer_is_not_applicable(make_log):
    with pytest.raises(NotApplicable, match="optimizer"):
        CoupledWeightDecay().detect(make_log({"grad_norm": np.ones((9, 2))}, manifest={"optimizer": {}}))
