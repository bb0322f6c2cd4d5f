"""Planes as matplotlib draws them and as they are sent to the front end."""

import io
import json

import numpy as np
import pytest
from matplotlib import colors
from matplotlib.image import imread

from dynaxx.core.panels import Field, Line, Lines
from dynaxx.figures._contours import FIELD_SIDE, colour_span, thinned
from dynaxx.figures._data import _header
from dynaxx.figures._draw import BAD_COLOUR, MISSING_COLOUR, PATH_COLOUR, picture

SIDE = np.linspace(-1.0, 1.0, 41)
BOWL = 1 + SIDE[None] ** 2 + 4 * SIDE[:, None] ** 2
PATH = Line(label="steps", x=np.linspace(-0.9, 0.9, 30), y=0.3 * np.ones(30))


def field(values=BOWL, **more):
    return Field(title="Plane $a$", x=SIDE, y=SIDE, values=values, value_label="loss", **more)


def pixels(drawn):
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=60)
    buffer.seek(0)
    return imread(buffer)[..., :3]


def share(image, colour, tolerance=0.02):
    return float((np.abs(image - colors.to_rgb(colour)).max(axis=-1) < tolerance).mean())


def test_contours_are_at_their_values():
    drawn = picture([field()])
    axes = drawn.axes[0]
    lines = next(c for c in axes.collections if hasattr(c, "levels") and not c.filled)
    inner = min(range(len(lines.levels)), key=lambda i: abs(lines.levels[i] - 2))
    vertices = lines.get_paths()[inner].vertices
    on = 1 + vertices[:, 0] ** 2 + 4 * vertices[:, 1] ** 2
    assert on == pytest.approx(lines.levels[inner], abs=0.01)
    assert len(vertices) > 50


def test_walls_are_red_paths_are_drawn_and_zeros_on_a_log_scale_are_missing():
    walled = np.where(SIDE[None] > 0.5, np.where(SIDE[:, None] > 0, np.inf, np.nan), BOWL)
    image = pixels(picture([field(walled, paths=(PATH,))]))
    assert 0.1 < share(image, BAD_COLOUR) < 0.3
    assert share(image, PATH_COLOUR) > 0.0005
    assert share(pixels(picture([field()])), BAD_COLOUR) == 0
    zeros = np.where(SIDE[None] > 0.5, 0.0, BOWL)
    assert share(pixels(picture([field(zeros, scale="log")])), MISSING_COLOUR) > 0.1


@pytest.mark.parametrize("fill", [np.nan, np.inf, 0.0, 3.0, -1.0, 1e300])
@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("surface", [False, True])
def test_odd_planes_are_drawn(fill, scale, surface):
    drawn = picture([field(np.full_like(BOWL, fill), scale=scale, paths=(PATH,))], surface=surface)
    assert pixels(drawn).std() > 0.01


def test_a_surface_has_the_heights_of_its_values():
    drawn = picture([field(paths=(PATH,))], surface=True)
    (axes,) = drawn.axes
    assert axes.name == "3d"
    low, high = colour_span(BOWL, "linear")
    assert axes.get_zlim() == pytest.approx((low, high))
    heights = axes.lines[0].get_data_3d()[2]
    assert heights == pytest.approx(1 + PATH.x**2 + 4 * 0.09, abs=0.06)
    assert pixels(drawn).std() > 0.02


def test_what_is_sent_is_what_was_measured():
    arrays = {}
    walled = BOWL.copy()
    walled[0, 0], walled[1, 1] = np.inf, np.nan
    header = _header(field(walled, paths=(PATH,), x_label="α", note="n"), "slices.0", arrays)
    json.dumps(header, allow_nan=False)
    sent = arrays[header["values_array"]]
    assert np.isnan(sent[[0, 1], [0, 1]]).all()
    np.testing.assert_allclose(sent[2:], BOWL[2:], rtol=1e-6)
    np.testing.assert_array_equal(arrays[header["x_array"]], SIDE)
    np.testing.assert_array_equal(arrays[header["paths"][0]["x_array"]], PATH.x)
    assert header["colours"] == pytest.approx([1.0, np.percentile(walled[np.isfinite(walled)], 98)])


def test_a_large_plane_is_thinned_to_its_ends():
    side = np.linspace(0, 1, 1000)
    x, y, values = thinned(Field(title="t", x=side, y=SIDE, values=np.tile(side, (41, 1))))
    assert len(x) == FIELD_SIDE
    assert (x[0], x[-1], len(y)) == (0, 1, 41)
    np.testing.assert_allclose(values, np.tile(x, (41, 1)))


def test_axes_and_marks_of_curves_on_a_log_axis():
    x = np.geomspace(1e-5, 1, 40)
    panel = Lines(title="t", lines=(Line(label="loss", x=x, y=x),), x_scale="log", marks={"best $": 1e-3})
    axes = picture([panel]).axes[0]
    assert axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.texts] == ["best \\$"]
    assert axes.lines[-1].get_xdata()[0] == 1e-3
    arrays = {}
    header = _header(panel, "k", arrays)
    assert (header["x_scale"], header["marks"]) == ("log", {"best $": 1e-3})
