import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynaxx.errors import CorruptData
from dynaxx.runlog.sealed import plain, seal, unseal

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(
    record=st.dictionaries(st.text().filter(lambda k: k != "xxh3"), VALUES, min_size=1),
    indent=st.sampled_from([None, 1]),
)
def test_what_is_sealed_is_read_again(record, indent):
    sealed = seal(record, indent)
    assert unseal(sealed + b"\n") == (record, True)
    assert json.loads(sealed) == {**record, "xxh3": json.loads(sealed)["xxh3"]}
    assert indent or b"\n" not in sealed


def test_every_flipped_bit_is_noticed():
    sealed = seal({"step": 3, "loss": 0.5, "text": "xxh3"})
    for bit in range(8 * len(sealed)):
        broken = bytearray(sealed)
        broken[bit // 8] ^= 1 << bit % 8
        try:
            _, intact = unseal(bytes(broken))
        except CorruptData:
            continue
        assert not intact, bit


@pytest.mark.parametrize("data", [b"", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000, b"3"])
def test_no_object_is_corrupt(data):
    with pytest.raises(CorruptData):
        unseal(data)


def test_values_that_json_does_not_know():
    @dataclass
    class Pair:
        left: float
        right: Path

    given = {"a": Pair(math.inf, Path("x")), "b": np.float32(0.5), "c": np.array([1, 2]), 3: -math.inf, "d": {2, 1}}
    assert plain(given) == {
        "a": {"left": "Infinity", "right": "x"}, "b": 0.5, "c": [1, 2], "3": "-Infinity", "d": ["1", "2"],
    }  # fmt: skip
    assert math.isnan(float(plain(np.float64("nan"))))
