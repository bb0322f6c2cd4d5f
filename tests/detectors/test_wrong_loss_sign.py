import math

import numpy as np
import pytest

from dynaxx.detectors.wrong_loss_sign import WrongLossSign
from dynaxx.errors import NotApplicable

STEPS = 60
LN10 = math.log(10)


@pytest.fixture
def run(make_log, facts_of):
    def run(loss, guess=LN10, **group):
        columns = {
            "loss": np.broadcast_to(loss, (STEPS,)),
            "outputs.guess_loss": np.full(STEPS, guess),
            "outputs.width": np.full(STEPS, 10.0),
        }
        return make_log(columns, manifest=facts_of(2, **group))

    return run


def test_a_mirrored_loss_that_runs_away_is_found(run):
    found = WrongLossSign().detect(run(-np.geomspace(LN10, 200, STEPS)))
    assert found.severity == "critical"
    assert found.causes[0].name == "wrong_loss_sign"
    assert WrongLossSign().detect(run(-0.7 * np.geomspace(LN10, 200, STEPS))) is not None, "weighted losses, too"


def test_a_negative_loss_of_another_kind_is_not(run):
    density = -np.geomspace(30, 200, STEPS)  # a negative log-likelihood of continuous data
    assert WrongLossSign().detect(run(density)) is None
    assert WrongLossSign().detect(run(-np.linspace(LN10, 2.5, STEPS))) is None, "it has not run away"


def test_a_loss_that_rises_is_found_only_where_the_optimizer_ascends(run):
    rising = np.geomspace(LN10, 50, STEPS)
    assert WrongLossSign().detect(run(rising)) is None
    assert WrongLossSign().detect(run(rising, maximize=True)).causes[0].name == "wrong_loss_sign"
    assert WrongLossSign().detect(run(np.geomspace(LN10, 0.1, STEPS), maximize=True)) is None


def test_a_short_log_is_not_applicable(make_log):
    columns = {"loss": -np.ones(3), "outputs.guess_loss": np.ones(3), "outputs.width": np.full(3, 10.0)}
    with pytest.raises(NotApplicable, match="rows"):
        WrongLossSign().detect(make_log(columns))


def test_a_loss_that_is_no_number_after_a_dozen_steps_is_found_by_those(run):
    loss = np.full(STEPS, np.nan)
    loss[:12] = -LN10 * np.geomspace(1, 1e12, 12)
    assert WrongLossSign().detect(run(loss)).causes[0].name == "wrong_loss_sign"
    loss[9:] = np.nan
    with pytest.raises(NotApplicable, match="9 rows"):
        WrongLossSign().detect(run(loss))
