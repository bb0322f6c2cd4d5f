"""A process that goes back to an earlier step: what stands in the log, what is kept of what was left."""

import numpy as np

from dynaxx.core.records import Column
from dynaxx.runlog import LogWriter, open_run
from dynaxx.runlog.clipped import ClippedView
from dynaxx.runlog.manifest import ROLLED_BACK

LOSS = Column(name="loss", dtype="float64")


def write(log, first, last, value):
    steps = np.arange(first, last + 1)
    log.rows("log", steps, [(LOSS, np.full(len(steps), float(value)), None)])


def test_the_new_course_stands_even_before_its_first_row(tmp_path):
    log = LogWriter(tmp_path / "run", manifest={})
    write(log, 1, 30, 1.0)
    assert log.begin_attempt(20) == 2
    assert log.attempt == 2
    view = open_run(tmp_path / "run")
    np.testing.assert_array_equal(view.steps, np.arange(1, 21))
    write(log, 21, 25, 2.0)
    view.refresh()
    np.testing.assert_array_equal(view["loss"].steps, np.arange(1, 26))
    np.testing.assert_array_equal(view["loss"].values, [1.0] * 20 + [2.0] * 5)
    log.close()
    view = open_run(tmp_path / "run")
    assert [(a.n, a.start_step, a.status, a.ended is not None) for a in view.attempts] == [
        (1, 0, ROLLED_BACK, True),
        (2, 20, "finished", True),
    ]
    assert not view.problems


def test_back_to_the_beginning_leaves_nothing_standing(tmp_path):
    log = LogWriter(tmp_path / "run", manifest={})
    write(log, 1, 30, 1.0)
    log.begin_attempt(0)
    view = open_run(tmp_path / "run")
    assert len(view.steps) == 0
    write(log, 1, 3, 2.0)
    log.close()
    view.refresh()
    np.testing.assert_array_equal(view["loss"].values, [2.0] * 3)


def test_a_killed_process_leaves_the_rows_that_none_has_taken_anew(tmp_path):
    """Unlike a rollback, a resume does not say that what came later was wrong."""
    log = LogWriter(tmp_path / "run", manifest={})
    write(log, 1, 30, 1.0)
    log.close("killed")
    log = LogWriter(tmp_path / "run", manifest={}, start_step=20, resume=True)
    write(log, 21, 25, 2.0)
    log.close()
    np.testing.assert_array_equal(open_run(tmp_path / "run").steps, np.arange(1, 31))


def test_events_that_stand_are_those_of_the_course(tmp_path):
    log = LogWriter(tmp_path / "run", manifest={})
    for step in (5, 15, 25):
        log.event("check", step=step, name=f"at {step}")
    log.begin_attempt(20)
    log.event("rolled_back", step=20, came_from=30)
    log.event("check", step=22, name="again")
    log.close()
    view = open_run(tmp_path / "run")
    assert [e["name"] for e in view.events("check")] == ["at 5", "at 15", "at 25", "again"]
    clipped = ClippedView(view)
    assert [e["name"] for e in clipped.events("check")] == ["at 5", "at 15", "again"]
    assert [e["step"] for e in ClippedView(view, last=21).events()] == [5, 15, 20]
    assert [e["attempt"] for e in clipped.events()] == [1, 1, 2, 2]


def test_lost_rows_are_told_of_the_attempt_that_lost_them(tmp_path):
    log = LogWriter(tmp_path / "run", manifest={})
    log._spool.lost = 7
    log.begin_attempt(0)
    log.close()
    assert [a.lost for a in open_run(tmp_path / "run").attempts] == [7, 0]
