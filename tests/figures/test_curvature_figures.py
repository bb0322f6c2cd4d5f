"""The curvature and noise figures against what the runs were made of."""

import numpy as np
import pytest

from dynaxx import figures
from dynaxx.errors import NotApplicable

AT = [32, 64, 96, 1024]


def panels(view, name):
    return {panel.title: panel for panel in figures.entries()[name].panels(view)}


def test_sharpness_is_shown_against_its_threshold(make):
    view = make(
        **{
            "stability_margin": (AT, [4.0, 2.0, 1.0, 0.8]),
            "stability_margin.sharpness": (AT, [0.5, 1.0, 2.0, 2.5]),
            "stability_margin.threshold": (AT, [2.0] * 4),
        }
    )
    found = panels(view, "curvature")
    against = found["Preconditioned sharpness against its threshold"]
    assert [(line.label, line.style) for line in against.lines] == [
        ("largest eigenvalue", "line"),
        ("threshold", "dashed"),
    ]
    assert against.lines[0].y.tolist() == [0.5, 1.0, 2.0, 2.5]
    margin, edge = found["Stability margin"].lines
    assert margin.y.tolist() == [4.0, 2.0, 1.0, pytest.approx(0.8)]
    assert edge.y.tolist() == [1.0, 1.0]


def test_errors_are_drawn_around_their_value(make):
    view = make(
        **{
            "sharpness": (AT, [1.0, 2.0, 3.0, 4.0]),
            "sharpness.bound": (AT, [0.1] * 4),
            "directional_curvature": (AT, [0.5] * 4),
            "trace": (AT, [10.0] * 4),
            "trace.error": (AT, [2.0] * 4),
        }
    )
    found = panels(view, "curvature")
    curves = {line.label: line.y for line in found["Sharpness, and curvature along the step's gradient"].lines}
    np.testing.assert_allclose(curves["λ₁ ± bound (low)"], [0.9, 1.9, 2.9, 3.9])
    np.testing.assert_allclose(curves["along the gradient"], 0.5)
    curves = {line.label: line.y for line in found["Trace of the Hessian"].lines}
    np.testing.assert_allclose(curves["± standard error (high)"], 12.0)


def test_the_noise_scale_is_shown_against_the_batch(make):
    view = make(
        **{
            "gradient_noise": (AT, [100.0, np.inf, 200.0, 400.0]),
            "gradient_noise.trace": (AT, [3.0] * 4),
            "gradient_noise.gradient": (AT, [0.02, -0.01, 0.02, 0.02]),
            "gradient_noise.cosine": (AT, [0.3] * 4),
            "gradient_agreement": (AT, [0.9] * 4),
            "gradient_agreement.cancellation": (AT, [0.1] * 4),
            "gradient_agreement.tail_index": (AT, [1.5] * 4),
            "gradient_agreement.tail_null": (AT, [2.0] * 4),
            "effective_batch": (AT, [64.0] * 4),
        }
    )
    found = panels(view, "gradient_noise")
    scale, batch = found["Gradient noise scale (examples)"].lines
    assert scale.y[0] == 100
    assert (batch.style, set(batch.y)) == ("dashed", {64.0})
    assert found["Noise and signal of the gradient"].y_scale == "linear"  # one is negative
    assert [line.label for line in found["Agreement of gradients"].lines] == [
        "with the last measured step",
        "between parts of a batch",
        "none",
    ]
    assert found["Cancellation of the update between layers"].lines[0].y.tolist() == [pytest.approx(0.1)] * 4
    assert [line.y[0] for line in found["Tail index of gradient noise"].lines] == [1.5, 2.0]


@pytest.mark.parametrize("name", ["curvature", "gradient_noise"])
def test_they_are_drawn(make, name):
    view = make(sharpness=(AT, [1.0, 2.0, 3.0, 4.0]), gradient_noise=(AT, [1.0, 2.0, np.inf, 4.0]))
    assert len(figures.draw(view, name).axes) >= 1


def test_without_a_loss_the_reason_says_how(only_loss):
    with pytest.raises(NotApplicable, match=r"watch\(\.\.\., loss=loss_fn\)"):
        figures.entries()["curvature"].panels(only_loss)
