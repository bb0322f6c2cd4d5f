import numpy as np
import pytest

from dynaxx.detectors.momentum_memory import MomentumMemory
from dynaxx.errors import NotApplicable


def look(make_log, facts_of, steps=400, rows=40, **group):
    return MomentumMemory().detect(make_log({"loss": np.ones(rows)}, {**facts_of(2, **group), "steps": steps}))


def test_a_memory_of_a_quarter_of_the_plan(make_log, facts_of):
    found = look(make_log, facts_of, momentum=0.99)
    assert found.causes[0].name == "momentum_too_high"
    assert found.evidence[0].value == pytest.approx(0.25)
    assert found.causes[0].remedies[0].action.arguments == {"most": 0.9}


def test_betas_are_read_as_the_log_writes_them(make_log, facts_of):
    assert look(make_log, facts_of, betas="(0.995, 0.999)").evidence[0].value == pytest.approx(0.5)
    assert look(make_log, facts_of, betas=[0.995, 0.999]).evidence[0].value == pytest.approx(0.5)


@pytest.mark.parametrize("group", [{"momentum": 0.9}, {"betas": "(0.95, 0.999)"}, {"momentum": 0.98}])
def test_usual_settings_are_silent(make_log, facts_of, group):
    assert look(make_log, facts_of, **group) is None


def test_the_same_momentum_in_a_long_run(make_log, facts_of):
    assert look(make_log, facts_of, steps=10_000, momentum=0.99) is None


def test_unknown_plans_and_settings(make_log, facts_of):
    with pytest.raises(NotApplicable, match="planned"):
        look(make_log, facts_of, steps=None, momentum=0.99)
    with pytest.raises(NotApplicable, match="how much momentum"):
        look(make_log, facts_of)
