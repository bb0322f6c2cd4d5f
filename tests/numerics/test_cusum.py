import numpy as np
import pytest

from dynaxx.errors import BadInput
from dynaxx.numerics.cusum import cusum


def test_equals_the_recursion():
    rng = np.random.default_rng(0)
    residuals = rng.normal(size=500)
    height, onset, s, began = [], [], 0.0, 0
    for i, r in enumerate(residuals):
        s = s + r - 0.25
        if s <= 0:
            s, began = 0.0, i + 1
        height.append(s)
        onset.append(began)
    found = cusum(residuals, 0.25)
    np.testing.assert_allclose(found.height, height, atol=1e-10)
    high = found.height > 0
    np.testing.assert_array_equal(found.onset[high], np.array(onset)[high])


def test_average_run_length_is_siegmunds():
    # k = 0.5, h = 5: 930 steps between alarms without a shift, 10.4 steps to one with a shift of 1 (Siegmund 1985)
    rng = np.random.default_rng(1)

    def length(shift):
        lengths = []
        for _ in range(300):
            path = cusum(rng.normal(shift, 1.0, 8000), 0.5).height
            above = np.flatnonzero(path > 5.0)
            lengths.append(above[0] + 1 if len(above) else 8000)
        return np.mean(lengths)

    assert length(0.0) == pytest.approx(930, rel=0.2)
    assert length(1.0) == pytest.approx(10.4, rel=0.1)


def test_the_onset_of_a_shift_is_found():
    residuals = np.concatenate([np.full(50, -0.5), np.full(20, 2.0)])
    assert cusum(residuals, 0.5).onset[-1] == 50


def test_not_a_number_is_refused():
    with pytest.raises(BadInput, match="finite"):
        cusum(np.array([0.0, np.nan]), 0.5)
