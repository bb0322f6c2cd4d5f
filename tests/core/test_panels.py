import dataclasses
import typing

import numpy as np
import pytest

from dynaxx.core.panels import Field, HeatMap, Line, Lines, Panel, Table

X = np.arange(3.0)
PANELS = [
    Lines(title="Loss", lines=(Line(label="loss", x=X, y=X),)),
    HeatMap(title="Norms", x=X, rows=("a",), values=X[:, None]),
    Field(title="Loss", x=X, y=X, values=X[:, None] * X),
    Table(title="About", header=("what",), rows=(("this",),)),
]


def test_every_kind_of_panel_is_a_value_with_a_title_and_a_note():
    assert {type(panel) for panel in PANELS} == set(typing.get_args(Panel))
    for panel in PANELS:
        assert panel.title
        assert panel.note == ""
        with pytest.raises(dataclasses.FrozenInstanceError):
            panel.title = "other"


def test_curves_are_linear_lines_over_steps_unless_said_otherwise():
    lines = PANELS[0]
    assert (lines.x_label, lines.y_scale, lines.lines[0].style) == ("step", "linear", "line")
    assert (lines.x_scale, lines.marks) == ("linear", {})
    assert PANELS[1].scale == PANELS[2].scale == "linear"
