import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from dynaxx.tasks import _bigram
from dynaxx.tasks.stdlib_lm import StdlibLM


def test_the_table_against_counting_by_hand():
    table = np.exp(_bigram.log_probabilities(np.frombuffer(b"abaac", dtype=np.uint8), delta=0.5))
    a, b, c, d = b"abcd"
    # a is followed by b, a and c once each; b by a; c by nothing.
    assert table[a, [a, b, c, d]] == pytest.approx([1.5 / 131, 1.5 / 131, 1.5 / 131, 0.5 / 131])
    assert table[b, a] == pytest.approx(1.5 / 129)
    assert table[c] == pytest.approx(np.full(256, 1 / 256))
    assert table.sum(axis=1) == pytest.approx(np.ones(256))


def test_the_highest_bytes_do_not_overflow():
    table = np.exp(_bigram.log_probabilities(np.full(1001, 255, dtype=np.uint8), delta=1.0))
    assert table[255, 255] == pytest.approx(1001 / 1256)


class Excerpt(StdlibLM):
    @property
    def text(self):
        return replace(super().text, train=super().text.train[:200_000])


def test_bits_per_byte_on_the_windows_of_the_task():
    task = Excerpt()
    text = task.text.train.numpy().tobytes()
    pairs, firsts = Counter(pairwise(text)), Counter(text[:-1])
    bits = [
        -math.log2((pairs[p, n] + 0.1) / (firsts[p] + 25.6))
        for inputs, targets in task.batches("validation", seed=9)
        for p, n in zip(inputs.flatten().tolist(), targets.flatten().tolist(), strict=True)
    ]
    assert _bigram.bits_per_byte(task) == pytest.approx(sum(bits) / len(bits), rel=1e-12)


def test_more_text_makes_a_better_table():
    whole = _bigram.bits_per_byte(StdlibLM())
    assert 3.0 < whole < _bigram.bits_per_byte(Excerpt())
    assert whole < 4.0
