import numpy as np
import pytest

from dynaxx.figures._pool import BAD, CODES, INTERVALS, MISSING, cells, encode, envelope, not_finite, union


def decoded(codes, span, scale):
    unit = (codes.astype(float) - 2) / (CODES - 2)
    if scale == "log":
        return 10 ** (np.log10(span[0]) + unit * (np.log10(span[1]) - np.log10(span[0])))
    return span[0] + unit * (span[1] - span[0])


def test_a_short_series_is_left_alone():
    x, y = np.arange(10.0), np.sin(np.arange(10.0))
    kept_x, kept_y = envelope(x, y, points=10)
    assert np.array_equal(kept_x, x)
    assert np.array_equal(kept_y, y)


def test_a_long_series_keeps_real_points_only_and_its_ends():
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.integers(1, 9, 50_000)).astype(float)
    y = rng.standard_normal(50_000)
    y[[123, 40_000]] = [99.0, -99.0]
    kept_x, kept_y = envelope(x, y, points=400)
    assert len(kept_x) <= 400
    assert np.all(np.diff(kept_x) > 0)
    assert np.array_equal(kept_y, y[np.searchsorted(x, kept_x)])  # nothing is made up
    assert (kept_y.max(), kept_y.min()) == (99.0, -99.0)
    assert kept_x[[0, -1]].tolist() == x[[0, -1]].tolist()


def test_the_highest_and_lowest_point_of_each_equal_bucket_are_kept():
    rng = np.random.default_rng(4)
    y = rng.standard_normal(9_900)
    kept_x, kept_y = envelope(np.arange(9_900.0), y, points=200)  # 99 buckets of 100
    for start in range(0, 9_900, 100):
        inside = kept_y[(kept_x >= start) & (kept_x < start + 100)]
        assert inside.max() == y[start : start + 100].max()
        assert inside.min() == y[start : start + 100].min()


def test_finite_values_win_over_others_and_a_bucket_without_any_breaks_the_line():
    y = np.ones(10_000)
    y[::2] = np.nan
    y[4_000:6_000] = np.inf
    x, pooled = envelope(np.arange(10_000.0), y, points=100)
    inside = (x > 4_200) & (x < 5_800)
    assert np.isnan(pooled[inside]).all()
    assert inside.any()
    assert (pooled[(x > 100) & (x < 3_800)] == 1.0).all()


def test_intervals_of_what_is_not_finite():
    y = np.zeros(10)
    y[[2, 3, 7]] = np.nan, np.inf, -np.inf
    assert not_finite(np.arange(0.0, 100, 10), y) == ((20.0, 30.0), (70.0, 70.0))
    assert not_finite(np.arange(3.0), np.zeros(3)) == ()


def test_a_thousand_scattered_nans_become_few_intervals_that_cover_them():
    y = np.zeros(100_000)
    bad = np.arange(0, 100_000, 100)
    y[bad] = np.nan
    found = not_finite(np.arange(100_000.0), y)
    assert len(found) <= INTERVALS
    covered = np.zeros(100_000, bool)
    for first, last in found:
        covered[int(first) : int(last) + 1] = True
    assert covered[bad].all()


def test_two_distant_nans_stay_two():
    y = np.zeros(100_000)
    y[[10, 90_000]] = np.nan
    assert not_finite(np.arange(100_000.0), y) == ((10.0, 10.0), (90_000.0, 90_000.0))


def test_union_joins_what_overlaps_only():
    assert union([(5, 6), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 6)]


@pytest.mark.parametrize(("scale", "by", "spike"), [("log", "max", 50.0), ("linear", "mean", 1 + 49 / 21)])
def test_norms_are_pooled_by_maximum_and_fractions_by_mean(scale, by, spike):
    values = np.ones((21 * 1200, 2))
    values[21 * 600 + 5, 1] = 50.0
    drawn = cells(np.arange(1, len(values) + 1.0), values, scale)
    assert (drawn.by, drawn.pooled, drawn.values.shape) == (by, 21, (1200, 2))
    assert drawn.values[600, 1] == pytest.approx(spike)
    assert drawn.x[0] == 1.0
    assert drawn.x[600] == 21 * 600 + 1


def test_many_layers_get_fewer_columns():
    drawn = cells(np.arange(5_000.0), np.ones((5_000, 500)), "log")
    assert drawn.values.shape == (300, 500)


def test_one_infinite_value_marks_its_cell_and_a_nan_alone_does_not():
    values = np.ones((2_400, 3))
    values[100, 0] = np.inf  # not finite
    values[200, 1] = np.nan  # 0/0 of one layer
    values[300] = np.nan  # no layer has a number: diverged
    values[:, 2] = np.nan  # never measured
    values[:4] = np.nan  # not measured yet
    drawn = cells(np.arange(2_400.0), values, "linear").values
    assert np.isinf(drawn[50, 0])
    assert drawn[100, 1] == 1.0
    assert np.isinf(drawn[150, :2]).all()
    assert np.isnan(drawn[:, 2]).all()
    assert np.isnan(drawn[:2]).all()


def test_a_log_map_leaves_zeros_and_negatives_out():
    drawn = cells(np.arange(3.0), np.array([[1.0, 0.0], [10.0, -1.0], [100.0, 0.0]]), "log")
    assert np.isnan(drawn.values[:, 1]).all()
    assert drawn.span == (1.0, 100.0)


def test_uneven_steps_keep_their_places():
    drawn = cells(np.array([1.0, 2.0, 3.0, 13.0, 23.0]), np.ones((5, 1)), "linear")
    assert drawn.x.tolist() == [1.0, 2.0, 3.0, 13.0, 23.0, 28.5]  # the last cell is as wide as the median


def test_one_wild_value_does_not_flatten_the_colours():
    rng = np.random.default_rng(1)
    values = rng.random((1_000, 10))
    values[500, 5] = 1e9
    drawn = cells(np.arange(1_000.0), values, "linear")
    assert drawn.span[1] == 1e9
    assert drawn.colours[1] <= 1.0


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_codes_say_the_values_back(scale):
    rng = np.random.default_rng(2)
    values = 10 ** rng.uniform(-6, 0, (300, 7)) if scale == "log" else rng.uniform(-3, 5, (300, 7))
    values[3, 4], values[5, 6] = np.nan, np.inf
    good = np.isfinite(values)
    span = (values[good].min(), values[good].max())
    codes = encode(values, span, scale).T
    assert (codes[3, 4], codes[5, 6]) == (MISSING, BAD)
    assert codes[good].min() == 2
    assert codes[good].max() == CODES
    back = decoded(codes, span, scale)[good]
    if scale == "log":  # half a code of six decades
        assert np.abs(back / values[good] - 1).max() < 10 ** (6 / (CODES - 2) / 2) - 1 + 1e-9
    else:
        assert np.abs(back - values[good]).max() <= (span[1] - span[0]) / (CODES - 2) / 2 + 1e-12


def test_a_constant_map_has_one_code():
    assert set(encode(np.full((4, 3), 2.5), (2.5, 2.5), "log").ravel().tolist()) == {2}
