import itertools

import numpy as np
import pytest

from dynaxx.numerics.dispersion import farthest_first, nearest


def between(points):
    return np.linalg.norm(points[:, None] - points[None], axis=2)


@pytest.mark.parametrize("seed", range(8))
def test_bounds_against_all_choices(seed):
    """At least half of the best smallest distance; at most twice the smallest covering radius."""
    distances = between(np.random.default_rng(seed).normal(size=(9, 2)))
    chosen = farthest_first(distances, 4, start=[], candidates=list(range(9)))
    subsets = list(itertools.combinations(range(9), 4))
    spread = max(nearest(distances, each).min() for each in subsets)
    radius = min(distances[:, each].min(axis=1).max() for each in subsets)
    assert len(set(chosen)) == 4
    assert spread / 2 <= nearest(distances, chosen).min() <= spread
    assert distances[:, chosen].min(axis=1).max() <= 2 * radius


def test_a_chain_is_halved_again_and_again():
    x = np.arange(17.0)[:, None]
    assert farthest_first(between(x), 5, start=[], candidates=list(range(17))) == [0, 16, 8, 4, 12]


def test_what_is_there_takes_no_place_but_is_kept_away_from():
    x = np.array([0.0, 0.1, 5.0, 5.1, 10.0])[:, None]
    assert farthest_first(between(x), 2, start=[0, 2], candidates=list(range(5))) == [4, 1]
    assert farthest_first(between(x), 9, start=[0, 2], candidates=list(range(5))) == [4, 1, 3]


def test_equal_distances_are_decided_by_the_order_of_the_candidates():
    distances = np.ones((4, 4)) - np.eye(4)
    assert farthest_first(distances, 3, start=[], candidates=[2, 0, 3, 1]) == [2, 0, 3]


def test_what_does_not_fit_is_passed_over():
    x = np.array([0.0, 10.0, 4.0, 1.0])[:, None]
    taken = farthest_first(between(x), 4, start=[], candidates=[0, 1, 2, 3], sizes=[1.0, 9.0, 1.0, 1.0], budget=3.0)
    assert taken == [0, 2, 3]


def test_a_single_point_has_no_neighbour():
    assert nearest(np.zeros((2, 2)), [1]).tolist() == [np.inf]
    assert nearest(np.zeros((2, 2)), []).tolist() == []
