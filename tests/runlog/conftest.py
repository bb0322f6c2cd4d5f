"""Small runs with known content, and what a view of them must say."""

import warnings

import numpy as np
import pytest

from dynaxx.core.records import Axis, Column
from dynaxx.errors import DynaxxWarning
from dynaxx.runlog import LogWriter, open_run

AXIS = Axis(name="layer", labels=("stem", "blocks.0", "head"), weights=(1.0, 2.0, 5.0))
GRAD = Column(name="grad_norm", axis=AXIS, unit="1", reduce="l2", about="Norm of the gradient.")
LOSS = Column(name="loss", dtype="float64")


class Run:
    """Blocks of two columns, one row per step; the loss is missing at odd steps, the gradient is NaN at every 7th."""

    grad, loss = GRAD, LOSS

    @staticmethod
    def rows(first, count):
        steps = np.arange(first, first + count)
        rng = np.random.default_rng(first)
        grad = rng.standard_normal((count, 3)).astype(np.float32)
        grad[steps % 7 == 0] = np.nan
        return steps, grad, rng.standard_normal(count), steps % 2 == 0

    @classmethod
    def write(cls, folder, blocks=4, size=8, close=True, **options):
        log = LogWriter(folder, manifest={"name": "test"}, **options)
        first = options.get("start_step", 0) + 1
        for _ in range(blocks):
            steps, grad, loss, there = cls.rows(first, size)
            log.rows("every", steps, [(GRAD, grad, None), (LOSS, loss, there)])
            first += size
        log.event("finding", step=first - 1, score=0.25)
        assert log.flush()
        if close:
            log.close()
        return log

    @classmethod
    def truth(cls, blocks=4, size=8):
        """Column → step → bytes of its row."""
        found = {"grad_norm": {}, "loss": {}}
        for block in range(blocks):
            for step, grad, loss, there in zip(*cls.rows(1 + block * size, size), strict=True):
                found["grad_norm"][int(step)] = grad.tobytes()
                if there:
                    found["loss"][int(step)] = loss.tobytes()
        return found


@pytest.fixture
def run():
    return Run


def contents(view):
    """Column → step → bytes of its row, as a view gives them."""
    found = {}
    for name in view.columns:
        array = view[name]
        found[name] = {int(s): v.tobytes() for s, v in zip(array.steps, np.asarray(array), strict=True)}
    return found


@pytest.fixture
def read():
    """Open a run folder without failing on the warnings, and return the view and its contents."""

    def read(folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DynaxxWarning)
            view = open_run(folder)
            return view, contents(view)

    return read
