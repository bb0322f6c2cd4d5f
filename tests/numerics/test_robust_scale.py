import numpy as np
import pytest

from dynaxx.errors import BadInput
from dynaxx.numerics.robust_scale import center_and_scale, trailing_baseline


def test_scale_of_normal_numbers_is_their_deviation():
    values = np.random.default_rng(0).normal(3.0, 0.5, (4, 20_000))
    center, scale = center_and_scale(values)
    assert np.allclose(center, 3.0, atol=0.02)
    assert np.allclose(scale, 0.5, rtol=0.03)


def test_just_under_half_may_go_anywhere():
    values = np.concatenate([np.zeros(51), np.full(49, 1e12)])
    center, scale = center_and_scale(values)
    assert (center, scale) == (0.0, 0.0)


def plain(values, keep, window, every, least):
    center, scale = np.full(len(values), np.nan), np.full(len(values), np.nan)
    for i in range(len(values)):
        start = i // every * every
        seen = values[max(0, start - window) : start][keep[max(0, start - window) : start]]
        if len(seen) >= least:
            center[i] = np.median(seen)
            scale[i] = 1.4826022185056018 * np.median(np.abs(seen - np.median(seen)))
    return center, scale


@pytest.mark.parametrize(("window", "every", "least"), [(16, 1, 4), (16, 5, 16), (7, 3, 2), (50, 16, 10)])
def test_equals_a_loop(window, every, least):
    rng = np.random.default_rng(1)
    values, keep = rng.normal(size=203), rng.random(203) > 0.2
    found = trailing_baseline(values, keep, window=window, every=every, least=least)
    center, scale = plain(values, keep, window, every, least)
    assert np.isfinite(center).any()
    np.testing.assert_allclose(found.center, center)
    np.testing.assert_allclose(found.scale, scale)


def test_no_point_is_compared_with_itself_or_the_future():
    values = np.zeros(64)
    changed = values.copy()
    changed[40:] = 9.0
    keep = np.ones(64, dtype=bool)
    before = trailing_baseline(values, keep, window=8, every=4, least=4)
    after = trailing_baseline(changed, keep, window=8, every=4, least=4)
    np.testing.assert_array_equal(before.center[:44], after.center[:44])


def test_bad_numbers_are_refused():
    with pytest.raises(BadInput, match="least <= window"):
        trailing_baseline(np.zeros(4), np.ones(4, dtype=bool), window=2, every=1, least=3)
