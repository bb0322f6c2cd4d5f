import itertools

import numpy as np
import pytest

from dynaxx.numerics.dispersion import Choice, farthest_first, most_spread, nearest, thinned


def between(points):
    return np.linalg.norm(points[:, None] - points[None], axis=2)


def line(*places):
    return between(np.array(places, dtype=float)[:, None])


@pytest.mark.parametrize("seed", range(8))
def test_bounds_against_all_choices(seed):
    """At least half of the best smallest distance; at most twice the smallest covering radius."""
    distances = between(np.random.default_rng(seed).normal(size=(9, 2)))
    choice = Choice(distances=distances, candidates=range(9), count=4)
    subsets = list(itertools.combinations(range(9), 4))
    best = max(choice.spread(each) for each in subsets)
    radius = min(distances[:, each].min(axis=1).max() for each in subsets)
    chosen = farthest_first(choice)
    assert len(set(chosen)) == 4
    assert best / 2 <= choice.spread(chosen) <= choice.spread(most_spread(choice)) <= best
    assert distances[:, chosen].min(axis=1).max() <= 2 * radius


@pytest.mark.parametrize("count", [3, 5, 8, 12])
@pytest.mark.parametrize("path", ["line", "slowing", "walk"])
def test_points_that_come_one_by_one_stay_spread_out(path, count):
    """At least half as far apart as they can be with all at hand; the farthest-first rule alone keeps neighbours."""
    moves = np.random.default_rng(0).normal(size=(100, 20))
    points = {
        "line": np.arange(100.0)[:, None],
        "slowing": np.log1p(np.arange(100.0))[:, None],
        "walk": np.cumsum(moves, axis=0),
    }[path]

    def spread(rule):
        kept = []
        for i in range(100):
            kept = [*kept, i]
            chosen = rule(Choice(distances=between(points[kept]), candidates=range(len(kept)), count=count))
            kept = [kept[j] for j in sorted(chosen)]
        assert len(kept) == count
        return nearest(between(points), kept).min()

    whole = Choice(distances=between(points), candidates=range(100), count=count)
    best = whole.spread(most_spread(whole))
    assert spread(most_spread) >= 0.5 * best
    assert spread(thinned) >= 0.5 * best
    if path != "walk":
        assert spread(farthest_first) < 0.4 * best


def test_a_newcomer_that_is_close_changes_nothing():
    kept = Choice(distances=line(0.0, 3.1, 6.0, 6.05), candidates=range(4), count=3)
    assert thinned(kept) == [0, 1, 2]
    assert thinned(Choice(distances=line(0.0, 3.0, 6.0, 9.5), candidates=range(4), count=3)) == [0, 2, 3]


def test_a_chain_is_halved_again_and_again():
    assert farthest_first(Choice(distances=line(*range(17)), candidates=range(17), count=5)) == [0, 16, 8, 4, 12]


@pytest.mark.parametrize("rule", [most_spread, thinned, farthest_first])
def test_what_is_there_takes_no_place_but_is_kept_away_from(rule):
    distances = line(0.0, 0.1, 5.0, 5.1, 10.0)
    assert rule(Choice(distances=distances, candidates=range(5), fixed=[0, 2], count=1)) == [4]
    assert sorted(rule(Choice(distances=distances, candidates=range(5), fixed=[0, 2], count=9))) == [1, 3, 4]


@pytest.mark.parametrize("rule", [most_spread, thinned, farthest_first])
def test_equal_distances_are_decided_by_the_order_of_the_candidates(rule):
    distances = np.ones((4, 4)) - np.eye(4)
    assert rule(Choice(distances=distances, candidates=[2, 0, 3, 1], count=3)) == [2, 0, 3]


def test_what_does_not_fit_is_passed_over():
    choice = Choice(
        distances=line(0.0, 10.0, 4.0, 1.0), candidates=range(4), count=4, sizes=[1.0, 9.0, 1.0, 1.0], budget=3.0
    )
    assert farthest_first(choice) == [0, 2, 3]
    assert sorted(most_spread(choice)) == [0, 2, 3]  # more of them, though they lie closer
    assert thinned(choice) in ([0], [1], [2], [3], [0, 2])


def test_a_single_point_has_no_neighbour():
    assert nearest(np.zeros((2, 2)), [1]).tolist() == [np.inf]
    assert nearest(np.zeros((2, 2)), []).tolist() == []
