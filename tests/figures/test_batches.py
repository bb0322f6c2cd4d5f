"""The effective batch is drawn without the short last batch of each epoch."""

import numpy as np

from dynaxx.core.records import Column
from dynaxx.figures._build import batches
from dynaxx.runlog import LabelledArray


def test_short_last_batches_are_left_out_and_changes_stay():
    values = np.full(100, 64.0)
    values[22::23] = 34.0
    values[60:] *= 2
    steps = np.arange(100)
    column = Column(name="effective_batch", unit="examples", dtype="float64")
    shown = batches(LabelledArray(column, steps, lambda: values, None), "examples")
    assert set(shown.y[:60]) == {64.0}
    assert set(shown.y[60:]) == {128.0}
