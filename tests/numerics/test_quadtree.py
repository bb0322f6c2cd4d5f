"""Adaptive refinement against functions whose every value is known."""

import numpy as np
import pytest

from dynaxx.errors import BadInput
from dynaxx.numerics.quadtree import Quadtree

FINE = np.linspace(-1, 1, 121)
GRID = np.linspace(-1, 1, 41)


def refined(function, points, batch=40, x=(-1.0, 1.0), y=(-1.0, 1.0)):
    tree = Quadtree(x, y)
    while points - tree.count >= 5 and len(asked := tree.ask(min(batch, points - tree.count))):
        tree.tell(function(asked[:, 0], asked[:, 1]))
    return tree


def error(tree, function):
    return np.abs(tree.surface(FINE, FINE) - function(FINE[None], FINE[:, None]))


def linear_grid_error(function):
    """What 41 × 41 points show when they are read off linearly, as contour plots do."""
    values = function(GRID[None], GRID[:, None])
    rows = np.stack([np.interp(FINE, GRID, row) for row in values])
    both = np.stack([np.interp(FINE, GRID, column) for column in rows.T], 1)
    return np.abs(both - function(FINE[None], FINE[:, None]))


def cliff(x, y):
    return np.tanh(20 * (x + 0.5 * y - 0.3))


def canyon(x, y):
    return x**2 + np.log1p(200 * (y - 0.3 * x) ** 2)


def bowl(x, y):
    return np.exp(x) * np.cos(2 * y)


def test_cubics_are_exact_from_the_first_lattices_and_nothing_more_is_asked():
    tree = Quadtree((-1.0, 1.0), (-1.0, 1.0))
    for expected in (25, 81):
        asked = tree.ask(1000)
        tree.tell((asked[:, 0] ** 3 - 2 * asked[:, 1] ** 3 * asked[:, 0]) * 8)  # exact in binary on the lattice
        assert tree.count == expected
    truth = (FINE[None] ** 3 - 2 * FINE[:, None] ** 3 * FINE[None]) * 8
    # Read off linearly at 512 intervals: (2/512)² · 16 · 6 / 8.
    assert np.abs(tree.surface(FINE, FINE) - truth).max() < 4e-4
    tree = refined(lambda x, y: np.zeros_like(x), 500)
    assert tree.count == 81


@pytest.mark.parametrize(("function", "points"), [(cliff, 560), (canyon, 560), (bowl, 160)])
def test_a_third_of_the_points_of_a_full_grid_show_as_much(function, points):
    assert points <= 41 * 41 / 3
    found, full = error(refined(function, points), function), linear_grid_error(function)
    assert np.sqrt((found**2).mean()) < np.sqrt((full**2).mean())


def test_points_go_where_the_function_bends():
    tree = Quadtree((-1.0, 1.0), (-1.0, 1.0))
    places = []
    while tree.count < 500 and len(asked := tree.ask(40)):
        tree.tell(cliff(asked[:, 0], asked[:, 1]))
        places.append(asked)
    later = np.concatenate(places[2:])
    assert np.median(np.abs(later[:, 0] + 0.5 * later[:, 1] - 0.3)) < 0.15  # 0.5 if they were spread evenly


def test_every_point_is_asked_once_and_a_batch_is_no_larger_than_asked():
    tree, seen = Quadtree((0.0, 2.0), (5.0, 6.0)), set()
    while len(asked := tree.ask(17)) and tree.count < 600:
        assert len(asked) <= 17 or tree.count < 81
        new = {tuple(point) for point in asked.tolist()}
        assert len(new) == len(asked)
        assert not new & seen
        assert asked[:, 0].min() >= 0
        assert asked[:, 1].max() <= 6
        seen |= new
        tree.tell(np.sin(9 * asked[:, 0] * asked[:, 1]))
    assert tree.count == len(seen)


def test_known_points_are_kept_as_they_are():
    tree, known = Quadtree((-1.0, 1.0), (-1.0, 1.0)), {}
    while tree.count < 300:
        asked = tree.ask(40)
        values = canyon(asked[:, 0], asked[:, 1])
        known |= dict(zip(map(tuple, asked), values, strict=True))
        tree.tell(values)
    for (x, y), value in list(known.items())[::10]:
        assert tree.surface(np.array([x]), np.array([y]))[0, 0] == pytest.approx(value, abs=1e-12)


def test_it_is_finer_the_longer_it_runs_and_can_be_stopped_at_any_time():
    errors = [float(np.sqrt((error(refined(canyon, n), canyon) ** 2).mean())) for n in (25, 90, 300, 900, 1600)]
    assert all(np.isfinite(errors))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 100


def test_walls_are_walls_and_their_neighbourhood_is_right():
    def walled(x, y):
        return np.where(x**2 + y**2 > 0.8, np.where(x > 0, np.inf, np.nan), np.exp(x + y))

    tree = refined(walled, 900)
    drawn = tree.surface(FINE, FINE)
    radius = FINE[None] ** 2 + FINE[:, None] ** 2
    assert np.isnan(drawn[radius > 0.9]).mean() > 0.99
    inside = radius < 0.6
    assert np.isfinite(drawn[inside]).all()
    assert np.abs(drawn - np.exp(FINE[None] + FINE[:, None]))[inside].max() < 0.05
    edge = np.isfinite(drawn) != (radius <= 0.8)
    assert edge.mean() < 0.05


def test_nothing_finite_at_all():
    tree = refined(lambda x, y: np.full_like(x, np.nan), 300)
    assert np.isnan(tree.surface(FINE, FINE)).all()
    assert tree.span == (0.0, 0.0)
    assert tree.count == 81


def test_bad_input():
    with pytest.raises(BadInput, match="length"):
        Quadtree((1.0, 1.0), (0.0, 1.0))
    with pytest.raises(BadInput, match="cells"):
        Quadtree((0.0, 1.0), (0.0, 1.0), cells=2)
    tree = Quadtree((0.0, 1.0), (0.0, 1.0))
    assert len(tree.ask(40)) == 25
    with pytest.raises(BadInput, match="25"):
        tree.tell(np.zeros(3))
