import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import colors
from matplotlib.image import imread

from dynaxx import figures
from dynaxx.core.panels import Table
from dynaxx.errors import NotApplicable, UnknownName
from dynaxx.figures._draw import BAD_COLOUR, picture


def pixels(drawn):
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=60)
    buffer.seek(0)
    return imread(buffer)[..., :3]


def share(image, colour, tolerance=0.02):
    return float((np.abs(image - colors.to_rgb(colour)).max(axis=-1) < tolerance).mean())


@pytest.mark.parametrize("name", figures.entries())
def test_every_figure_is_drawn(diverged, name):
    try:
        panels = figures.entries()[name].panels(diverged)
    except NotApplicable:
        with pytest.raises(NotApplicable):
            figures.draw(diverged, name)
        return
    drawn = figures.draw(diverged, name)
    titled = [axes.get_title(loc="left") for axes in drawn.axes if axes.get_title(loc="left")]
    assert titled == [panel.title for panel in panels]
    assert pixels(drawn).std() > 0.02  # not blank


@pytest.mark.parametrize("name", ["lr", "grad_norm", "grad_norm.q90", "loss", "activations.dead", "val_accuracy"])
def test_any_column_is_drawn(healthy, name):
    assert pixels(figures.draw(healthy, name)).std() > 0.02


def test_the_huge_run_is_drawn(huge):
    drawn = figures.draw(huge, "grad_norm")
    (mesh,) = [c for c in drawn.axes[0].collections if c.get_array() is not None]
    assert mesh.get_array().shape == (500, 300)


def test_an_unknown_name_offers_figures_and_columns(healthy):
    with pytest.raises(UnknownName, match="Did you mean 'gradients'"):
        figures.draw(healthy, "gradient")
    with pytest.raises(UnknownName, match="'grad_norm'"):
        figures.draw(healthy, "grad_nrm")


def test_divergence_is_red(diverged, healthy):
    assert share(pixels(figures.draw(diverged, "grad_norm")), BAD_COLOUR) > 0.1
    assert share(pixels(figures.draw(healthy, "grad_norm")), BAD_COLOUR) == 0.0


def test_names_with_dollars_and_underscores_are_shown_as_they_are(make):
    values = np.arange(1.0, 7).reshape(2, 3)
    view = make(
        grad_norm=([1, 2], values, "layer", ("$\\frac$", "_private", "plain")),
        lr=([1, 2], values[:, :2], "group", ("$x", "_y")),
    )
    heat = figures.draw(view, "grad_norm")
    pixels(heat)
    assert [t.get_text() for t in heat.axes[0].get_yticklabels()] == ["\\$\\frac\\$", "_private", "plain"]
    rates = figures.draw(view, "lr")
    pixels(rates)
    assert [t.get_text() for t in rates.axes[0].get_legend().get_texts()] == ["\\$x", "_y"]


@pytest.mark.parametrize("values", [[np.nan] * 5, [np.inf] * 5, [0.0] * 5, [1.0], [-1e300, 1e300]])
def test_odd_losses_are_drawn(make, values):
    drawn = figures.draw(make(loss=(range(1, len(values) + 1), values)), "loss")
    assert pixels(drawn).std() > 0.01


def test_long_facts_do_not_squeeze_the_picture():
    rows = (("command", "x" * 2_000), *((f"fact {i}", "y" * 300) for i in range(40)))
    table = Table(title="Run", header=("", ""), rows=rows)
    image = pixels(picture([table]))
    assert image.std() > 0.02
    assert image.shape[1] == 540


@pytest.mark.parametrize("fill", [np.nan, np.inf, 0.0, 3.0])
def test_odd_matrices_are_drawn(make, fill):
    view = make(grad_norm=([1, 2, 3], np.full((3, 2), fill), "layer", ("a", "b")))
    assert pixels(figures.draw(view, "gradients")).std() > 0.01


def test_drawing_leaves_pyplot_alone():
    code = (
        "import sys, dynaxx.figures; assert 'matplotlib' not in sys.modules; "
        "from dynaxx.core.panels import Table; from dynaxx.figures._draw import picture; "
        "picture([Table(title='t', header=('a',), rows=(('b',),))]).savefig(sys.stdout.buffer, format='svg'); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=120)
