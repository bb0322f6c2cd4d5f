"""Numbers of lines and planes against shapes whose answer is known."""

import numpy as np
import pytest

from dynaxx.numerics.relief import barrier, line_relief, plane_relief

X = np.linspace(-1, 1, 201)


def test_a_parabola():
    found = line_relief(X, 3 * X**2 + X)
    assert found.roughness == 0
    assert found.residual < 1e-12
    assert found.convexity == 1
    assert found.slope == pytest.approx(7, rel=0.01)
    assert found.asymmetry == pytest.approx(1.0 / (4 + 1 / 12), rel=0.01)  # mean |2x| over max − min
    assert found.walls == 0


def test_bumps_are_rough_in_proportion():
    """V + a sin(kx): each period adds variation beyond the valley's."""
    calm, rough = (line_relief(X, X**2 + a * np.sin(40 * X)) for a in (0.01, 0.3))
    assert calm.roughness < rough.roughness
    # Variation: four slopes of 0.3 a period; the valley's share is what its ends are above its lowest point.
    values = X**2 + 0.3 * np.sin(40 * X)
    truth = 1 - (values[0] + values[-1] - 2 * values.min()) / np.abs(np.diff(values)).sum()
    assert rough.roughness == pytest.approx(truth)
    assert rough.roughness > 0.8
    assert rough.residual == pytest.approx(0.3 / np.sqrt(2) / np.ptp(values), rel=0.05)
    assert rough.convexity == pytest.approx(0.5, abs=0.05)


def test_one_valley_of_any_shape_is_not_rough():
    for values in (np.abs(X), np.sqrt(np.abs(X - 0.3)), np.exp(X), -X):
        assert line_relief(X, values).roughness == pytest.approx(0, abs=1e-12)
    assert line_relief(X, -np.abs(X)).roughness > 0.4  # a ridge is none


def test_rounding_of_float32_is_not_roughness():
    values = (1000 + 1e-9 * X).astype(np.float32).astype(float) + np.random.default_rng(0).choice([0, 6e-5], len(X))
    found = line_relief(X, values)
    assert (found.roughness, found.residual, found.asymmetry, found.convexity) == (0, 0, 0, 1)


def test_walls_are_counted_and_left_out():
    values = np.where(X > 0.5, np.nan, X**2)
    found = line_relief(X, values)
    assert found.walls == pytest.approx(0.25, abs=0.01)
    assert (found.roughness, found.convexity) == (0, 1)
    assert found.slope == pytest.approx(2, rel=0.01)
    nothing = line_relief(X, np.full_like(X, np.inf))
    assert nothing.walls == 1
    assert np.isnan(nothing.roughness)


def test_a_saddle_a_canyon_and_the_metric():
    saddle = plane_relief(X, X, X[None] ** 2 - X[:, None] ** 2)
    assert (saddle.convexity, saddle.canyons) == (0, 0)
    canyon = plane_relief(X, X, X[None] ** 2 + 15 * X[:, None] ** 2)
    assert (canyon.convexity, canyon.canyons) == (1, 1)
    # The same plane along directions of length 1 and √15: the canyon was one of coordinates alone.
    round_ = plane_relief(X, X, X[None] ** 2 + 15 * X[:, None] ** 2, np.diag([1.0, 15.0]))
    assert round_.canyons == 0
    # Slope at the corner: ‖(2, 30/√15)‖.
    assert round_.slope == pytest.approx(np.hypot(2, 30 / np.sqrt(15)), rel=0.02)
    odd = plane_relief(X, X, X[None] + 0 * X[:, None])
    assert odd.asymmetry == pytest.approx(0.5, rel=0.01)  # mean |2x| over 2


def test_curvatures_do_not_depend_on_how_the_plane_is_spanned():
    """f = 100 u² + v² seen along u and (u + v)/√2: the metric undoes the slant."""
    a, b = X[None], X[:, None]
    u, v = a + b / np.sqrt(2), b / np.sqrt(2)
    values = 100 * u**2 + v**2
    gram = np.array([[1.0, 1 / np.sqrt(2)], [1 / np.sqrt(2), 1.0]])
    found = plane_relief(X, X, values, gram)
    assert (found.canyons, found.convexity) == (1, 1)
    assert found.slope == pytest.approx(np.hypot(200 * (1 + 1 / np.sqrt(2)), 2 / np.sqrt(2)), rel=0.02)


def test_a_plane_of_walls_and_a_flat_one():
    walls = plane_relief(X, X, np.full((201, 201), np.nan))
    assert walls.walls == 1
    assert np.isnan(walls.convexity)
    flat = plane_relief(X, X, np.full((201, 201), 3.0))
    assert (flat.roughness, flat.convexity, flat.canyons, flat.asymmetry) == (0, 1, 0, 0)


def test_barrier():
    t = np.linspace(-0.25, 1.25, 61)
    assert barrier(t, 1 + t + 4 * t * (1 - t)) == pytest.approx(1.0)
    assert barrier(t, t**2) == 0
    assert barrier(t, np.where(np.abs(t - 0.5) < 0.1, np.nan, t)) == np.inf
