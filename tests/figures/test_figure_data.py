import json

import numpy as np
import pytest

from dynaxx import figures
from dynaxx.figures._pool import BAD, CODES, HEAT_COLUMNS, LINE_POINTS


def arrays_of(header):
    for key, value in header.items():
        if key.endswith("_array"):
            yield value
    for curve in header.get("lines", ()):
        yield from arrays_of(curve)


@pytest.mark.parametrize("run", ["healthy", "diverged", "only_loss"])
def test_headers_are_json_and_name_every_array(run, request):
    for figure in figures.data(request.getfixturevalue(run)):
        json.dumps(figure.panels, allow_nan=False)
        assert bool(figure.panels) != bool(figure.reason)
        assert {name for header in figure.panels for name in arrays_of(header)} == set(figure.arrays)
        assert {a.dtype.str for a in figure.arrays.values()} <= {"<f8", "<f4", "<u2"}


def test_a_run_with_nothing_but_a_loss_has_one_curve_and_reasons(only_loss):
    drawn = {figure.name: figure for figure in figures.data(only_loss)}
    assert len(drawn["loss"].panels) == 1
    assert {name for name, figure in drawn.items() if not figure.reason} == {"loss", "about"}


def test_what_is_not_finite_is_marked(diverged):
    drawn = {figure.name: figure for figure in figures.data(diverged)}
    (loss,) = drawn["loss"].panels
    assert loss["bad"][0] == (401, 401)
    assert loss["bad"][-1] == (1401, 2000)
    heat = next(p for p in drawn["gradients"].panels if p["kind"] == "heat")
    x = drawn["gradients"].arrays[heat["x_array"]]
    codes = drawn["gradients"].arrays[heat["codes_array"]]
    assert heat["bad"]
    assert (codes[:, x[:-1] > 1400] == BAD).all()
    assert (codes[:, x[1:] <= 1401] >= 2).all()


def test_a_huge_run_is_pooled_and_keeps_its_spike(huge):
    drawn = {figure.name: figure for figure in figures.data(huge)}
    sizes = [array.size for figure in drawn.values() for name, array in figure.arrays.items() if name.endswith(".y")]
    assert max(sizes) <= LINE_POINTS
    gradients = drawn["gradients"]
    heat = next(p for p in gradients.panels if p["kind"] == "heat")
    codes = gradients.arrays[heat["codes_array"]]
    assert codes.shape[0] == 500
    assert codes.shape[1] <= HEAT_COLUMNS
    low, high = np.log10(heat["span"])
    back = 10 ** (low + (codes.astype(float) - 2) / (CODES - 2) * (high - low))
    values = huge["grad_norm"].values
    spike = np.unravel_index(values.argmax(), values.shape)
    column = np.searchsorted(gradients.arrays[heat["x_array"]], huge["grad_norm"].steps[spike[0]], side="right") - 1
    assert back[spike[1], column] == pytest.approx(values.max(), rel=0.005)


def test_a_loss_beyond_float32_stays_finite(make):
    (loss,) = [f for f in figures.data(make(loss=([1, 2, 3], [1.0, 1e300, 1.0]))) if f.name == "loss"]
    assert np.isfinite(loss.arrays["loss.0.0.y"]).all()
    assert loss.panels[0]["bad"] == []
