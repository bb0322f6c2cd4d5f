import numpy as np
import pytest

from dynaxx.detectors.dead_units import DeadUnits
from dynaxx.errors import NotApplicable

STEPS = 60


def dead(shares, onset=8):
    """Shares of three layers, unknown before units are called dead at all."""
    values = np.zeros((STEPS, 3))
    values[:7] = np.nan
    values[onset:] = shares
    return values


def test_a_layer_that_is_half_dead_is_found(make_log):
    found = DeadUnits().detect(make_log({"activations.dead": dead((0.1, 0.7, 0.0), onset=30)}))
    assert found.layers == ("layer1",)
    assert found.spans == ((31, STEPS),)
    assert found.severity == "note"
    assert found.evidence[0].value == pytest.approx(0.7)
    assert DeadUnits().detect(make_log({"activations.dead": dead((0, 0.9, 0))})).severity == "warning"


def test_two_fifths_or_a_short_while_are_no_finding(make_log):
    assert DeadUnits().detect(make_log({"activations.dead": dead((0.1, 0.4, 0.0))})) is None
    brief = dead((0.0, 0.0, 0.0))
    brief[20:26, 1] = 0.9
    assert DeadUnits().detect(make_log({"activations.dead": brief})) is None


def test_a_layer_that_is_all_dead_is_critical_unless_the_loss_falls(make_log):
    stuck = DeadUnits().detect(make_log({"activations.dead": dead((0, 1.0, 0)), "loss": np.full(STEPS, 2.3)}))
    assert stuck.severity == "critical"
    falls = DeadUnits().detect(make_log({"activations.dead": dead((0, 1.0, 0)), "loss": np.geomspace(2, 0.1, STEPS)}))
    assert falls.severity == "warning"


def test_units_that_begin_dead_and_units_that_are_killed_have_different_causes(make_log):
    born = np.full((STEPS, 3), 0.8)
    born[:7] = np.nan
    assert DeadUnits().detect(make_log({"activations.dead": born})).causes[0].name == "dead_units"
    killed = {"activations.dead": dead((0, 0.8, 0), onset=30), "update_ratio": np.full((STEPS, 3), 0.6)}
    assert DeadUnits().detect(make_log(killed)).causes[0].name == "learning_rate_too_high"


def test_before_units_were_watched_long_enough_it_is_not_applicable(make_log):
    with pytest.raises(NotApplicable, match="windows"):
        DeadUnits().detect(make_log({"activations.dead": np.full((20, 3), np.nan)}))
