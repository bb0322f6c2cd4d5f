import numpy as np
import pytest

from dynaxx.detectors.overflow import Overflow
from dynaxx.errors import NotApplicable

STEPS = 100
AT = np.arange(STEPS)


@pytest.fixture
def run(make_log):
    def run(skipped=None, scale=None, gradient=1.0):
        columns = {"grad_norm": np.broadcast_to(gradient, (STEPS,))[:, None] * np.ones((1, 3))}
        if scale is not None:
            columns |= {"precision.loss_scale": scale, "precision.skipped": skipped}
        return make_log(columns)

    return run


def test_a_storm_of_overflows_is_found(run):
    skipped = np.where(AT >= 50, 1.0, 0.0)
    found = Overflow().detect(run(skipped, 2.0 ** np.where(skipped, 3, 16)))
    assert found.severity == "warning"
    assert found.spans[0][0] > 50
    assert found.causes[0].name == "overflow"


def test_the_halving_of_the_first_steps_is_not(run):
    assert Overflow().detect(run(np.where(AT < 8, 1.0, 0.0), 2.0 ** np.maximum(16 - AT, 8))) is None


def test_the_share_counts_updates_between_rare_rows(make_log):
    """Two updates left out since the last row, 50 steps ago, are 4 %, not two in one."""
    at = np.arange(50, 50 * 31, 50)
    columns = {"precision.loss_scale": (at, np.full(30, 512.0)), "precision.skipped": (at, np.full(30, 2.0))}
    assert Overflow().detect(make_log(columns | {"grad_norm": np.ones((1500, 2))})) is None
    columns["precision.skipped"] = (at, np.full(30, 10.0))
    assert Overflow().detect(make_log(columns | {"grad_norm": np.ones((1500, 2))})).evidence[0].value == pytest.approx(
        10 / 60, rel=0.01
    )


def test_a_scale_at_its_floor_is_stuck(run):
    found = Overflow().detect(run(np.where(AT % 2 == 0, 1.0, 0.0), np.where(AT < 30, 64.0, 1.0)))
    assert found.severity == "critical"
    assert found.causes[0].name == "loss_scale_stuck"


def test_steps_without_any_gradient_between_others_are_updates_left_out(run):
    found = Overflow().detect(run(gradient=np.where(AT % 10 == 0, 1.0, 0.0)))
    assert found.severity == "warning"
    assert found.evidence[0].value == pytest.approx(0.9)
    assert found.causes[0].name == "loss_scale_stuck"


def test_a_model_that_died_is_another_matter(run):
    assert Overflow().detect(run(gradient=np.where(AT < 20, 1.0, 0.0))) is None


def test_a_short_log_is_not_applicable(make_log):
    with pytest.raises(NotApplicable, match="rows"):
        Overflow().detect(make_log({"grad_norm": np.zeros((3, 2))}))
