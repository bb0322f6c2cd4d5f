import numpy as np
import pytest

from dynaxx.detectors.attention_logit_growth import AttentionLogitGrowth
from dynaxx.errors import NotApplicable

STEPS = 200


def columns(last, entropy=2.0, first=3.0):
    steps = np.arange(STEPS)[:, None]
    grown = first * (last / first) ** (steps / (STEPS - 1)) * np.array([1.0, 0.01])
    left = 3.0 + (entropy - 3.0) * steps / (STEPS - 1) * np.ones((1, 2))
    return {"attention.logit_max": grown, "attention.entropy": left}


def test_growth_beyond_the_clip_level_is_found_with_its_doubling_time(make_log):
    found = AttentionLogitGrowth().detect(make_log(columns(3000)))
    assert found.severity == "warning"
    assert found.layers == ("layer0",)
    assert found.spans[-1][1] == STEPS
    doubling = (STEPS - 1) / np.log2(1000)
    assert f"doubling every {doubling:.0f} steps" in found.evidence[0].text


def test_logits_of_fifty_and_logits_that_began_large_are_not(make_log):
    assert AttentionLogitGrowth().detect(make_log(columns(50))) is None
    assert AttentionLogitGrowth().detect(make_log(columns(170, first=120))) is None


def test_where_runs_diverge_it_is_critical(make_log):
    assert AttentionLogitGrowth().detect(make_log(columns(1e6))).severity == "critical"


def test_collapsed_entropy_makes_it_the_attentions_own(make_log):
    collapsed = AttentionLogitGrowth().detect(make_log(columns(3000, entropy=0.01)))
    assert collapsed.causes[0].name == "attention_logit_growth"
    wide = AttentionLogitGrowth().detect(make_log(columns(3000)))
    assert wide.causes[0].confidence < collapsed.causes[0].confidence


def test_a_short_log_is_not_applicable(make_log):
    with pytest.raises(NotApplicable, match="rows"):
        AttentionLogitGrowth().detect(make_log({"attention.logit_max": np.ones((3, 2))}))
