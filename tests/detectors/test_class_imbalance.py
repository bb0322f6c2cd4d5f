import math

import numpy as np
import pytest

from dynaxx.detectors.class_imbalance import ClassImbalance
from dynaxx.errors import NotApplicable

STEPS = 100


def columns(share, top=3, loss=0.1, classes=10):
    return {
        "outputs.top_share": np.full(STEPS, share),
        "outputs.top_class": np.broadcast_to(top, (STEPS,)),
        "outputs.width": np.full(STEPS, float(classes)),
        "outputs.guess_loss": np.full(STEPS, math.log(classes)),
        "loss": np.full(STEPS, loss),
    }


def test_one_class_with_nearly_all_predictions_is_found(make_log):
    found = ClassImbalance().detect(make_log(columns(0.97) | {"val_loss": np.full(5, 3.0)}))
    assert found.severity == "warning"
    assert found.evidence[0].value == pytest.approx(0.97)
    assert "class 3" in found.title
    assert found.causes[0].name == "class_imbalance"


def test_a_mild_majority_sorted_data_and_a_collapsed_model_are_not(make_log):
    assert ClassImbalance().detect(make_log(columns(0.6))) is None
    assert ClassImbalance().detect(make_log(columns(0.97, top=np.arange(STEPS) % 10))) is None
    assert ClassImbalance().detect(make_log(columns(0.97, loss=2.3))) is None
    assert ClassImbalance().detect(make_log(columns(0.97, loss=-50.0))) is None


def test_two_classes_are_not_applicable(make_log):
    with pytest.raises(NotApplicable, match="3"):
        ClassImbalance().detect(make_log(columns(0.97, classes=2)))
