"""Charts go through JSON and come back."""

import json
import math

import numpy as np

from dynaxx.core.chart import Chart, Estimate
from dynaxx.core.panels import Field, HeatMap, Line, Lines, Table
from dynaxx.core.records import Cost


def _chart():
    return Chart(
        probe="spectrum",
        title="MLP, 12 parameters",
        values={
            "largest": Estimate(value=2.5, error=0.01, bound=True, about="largest eigenvalue"),
            "condition": Estimate(value=math.inf),
        },
        arrays={"eigenvalues": np.array([2.5, -1.0, np.nan])},
        panels=(
            Lines(title="density", lines=(Line(label="mean", x=np.array([0.0, 1.0]), y=np.array([np.nan, 2.0])),)),
            HeatMap(title="kernel", x=np.array([1.0]), rows=("a", "b"), values=np.array([[1.0, 2.0]])),
            Field(
                title="plane",
                x=np.array([0.0, 1.0]),
                y=np.array([0.0, 2.0, 3.0]),
                values=np.array([[1.0, np.inf], [2.0, 3.0], [np.nan, 5.0]]),
                paths=(Line(label="here", x=np.zeros(1), y=np.zeros(1)),),
                scale="log",
            ),
            Lines(
                title="rates",
                lines=(Line(label="loss", x=np.array([1e-3, 1e-2]), y=np.ones(2)),),
                x_scale="log",
                marks={"suggested": 3e-3},
            ),
            Table(title="by layer", header=("layer", "trace"), rows=(("0", "1.5"),)),
        ),
        cost=Cost(products=12, seconds=0.5),
        notes=("one note",),
    )


def test_a_chart_survives_strict_json():
    chart = _chart()
    text = json.dumps(chart.to_dict(), allow_nan=False)
    back = Chart.from_dict(json.loads(text))
    assert back.probe == chart.probe
    assert back.cost == chart.cost
    assert back.notes == chart.notes
    assert back.values["largest"] == chart.values["largest"]
    assert math.isnan(back["condition"])  # what is not finite is lost, not wrong
    np.testing.assert_array_equal(back.arrays["eigenvalues"], chart.arrays["eigenvalues"])
    for before, after in zip(chart.panels, back.panels, strict=True):
        assert type(before) is type(after)
        assert before.title == after.title
    np.testing.assert_array_equal(back.panels[0].lines[0].y, [np.nan, 2.0])
    np.testing.assert_array_equal(back.panels[1].values, [[1.0, 2.0]])
    field, rates, table = back.panels[2:]
    np.testing.assert_array_equal(field.values, [[1.0, np.nan], [2.0, 3.0], [np.nan, 5.0]])
    np.testing.assert_array_equal(field.y, [0.0, 2.0, 3.0])
    assert (field.paths[0].label, field.scale) == ("here", "log")
    assert (rates.x_scale, rates.marks) == ("log", {"suggested": 3e-3})
    assert table.rows == (("0", "1.5"),)


def test_numbers_are_shown_with_their_uncertainty():
    assert str(Estimate(value=2.0, error=0.1)) == "2 ± 0.1"
    assert str(Estimate(value=2.0, error=0.1, bound=True)) == "2 ≤±0.1"
    assert str(Estimate(value=1 / 3)) == "0.333333"
    assert str(Estimate(value=216.0195, error=19.04)) == "216 ± 19"
    assert str(Estimate(value=0.0673727, error=0.0102)) == "0.067 ± 0.01"
    assert str(Estimate(value=-1.23456789, error=1e-12)) == "-1.23457 ± 1e-12"
    assert str(Estimate(value=0.4, error=30.0)) == "0.4 ± 30"
    assert str(Estimate(value=0.0, error=0.5)) == "0 ± 0.5"
    assert str(Estimate(value=2.5, error=float("inf"))) == "2.5 ± inf"
    text = str(_chart())
    assert "largest" in text
    assert "largest eigenvalue" in text
    assert "note: one note" in text


def test_a_chart_draws_itself():
    assert _chart()._repr_png_()[:4] == b"\x89PNG"
    flat, solid = _chart().plot(), _chart().plot(surface=True)
    assert [axes.name for axes in flat.axes].count("3d") == 0
    assert [axes.name for axes in solid.axes].count("3d") == 1
    assert _chart()["largest"] == 2.5
