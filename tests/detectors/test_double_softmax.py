import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from dynaxx.detectors.double_softmax import DoubleSoftmax
from dynaxx.errors import NotApplicable

STEPS = 80
LN10 = math.log(10)


def columns(loss, normalised=1.0, guess=LN10, classes=10):
    return {
        "loss": np.broadcast_to(loss, (STEPS,)),
        "outputs.normalised": np.full(STEPS, normalised),
        "outputs.guess_loss": np.full(STEPS, guess),
        "outputs.width": np.full(STEPS, float(classes)),
    }


def test_the_band_is_what_torch_computes():
    probabilities = torch.eye(10)
    right = functional.cross_entropy(probabilities, torch.arange(10))
    wrong = functional.cross_entropy(probabilities, (torch.arange(10) + 1) % 10)
    assert float(right) == pytest.approx(math.log(math.e + 9) - 1, rel=1e-6)
    assert float(wrong) == pytest.approx(math.log(math.e + 9), rel=1e-6)


def test_probabilities_whose_loss_stays_in_the_band_are_found(make_log):
    found = DoubleSoftmax().detect(make_log(columns(np.linspace(LN10, 1.5, STEPS))))
    assert found.severity == "warning"
    assert found.causes[0].name == "double_softmax"
    assert found.evidence[1].threshold == pytest.approx(math.log(math.e + 9) - 1)


def test_probabilities_that_are_read_as_such_are_not(make_log):
    assert DoubleSoftmax().detect(make_log(columns(np.linspace(LN10, 1.2, STEPS)))) is None


def test_logits_with_an_ordinary_loss_are_not(make_log):
    assert DoubleSoftmax().detect(make_log(columns(np.linspace(LN10, 1.6, STEPS), normalised=0.0, guess=3.0))) is None


def test_decided_logits_whose_loss_does_not_show_it_are_found(make_log):
    found = DoubleSoftmax().detect(make_log(columns(np.linspace(LN10, 1.5, STEPS), normalised=0.0, guess=12.0)))
    assert found.causes[0].name == "double_softmax"
    sure = DoubleSoftmax().detect(make_log(columns(np.linspace(LN10, 1.5, STEPS))))
    assert found.causes[0].confidence < sure.causes[0].confidence


def test_one_output_is_no_classifier(make_log):
    with pytest.raises(NotApplicable, match="two entries"):
        DoubleSoftmax().detect(make_log(columns(1.0, classes=1)))
