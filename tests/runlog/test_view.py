import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynaxx.core.records import Axis, Column
from dynaxx.errors import BadInput, NotApplicable, UnknownName
from dynaxx.runlog import LogWriter, open_run

X = Column(name="x", dtype="float64")


def write(folder, attempts):
    """Attempts as (start step, blocks of steps); rows are numbered through, and missing where their step % 5 is 3."""
    number = 0
    for n, (start, blocks) in enumerate(attempts, start=1):
        log = LogWriter(folder, manifest={}, resume=n > 1, start_step=start)
        for stream, steps in blocks:
            values = np.arange(number, number + len(steps), dtype=float)
            number += len(steps)
            log.rows(stream, steps, [(X, values, np.array(steps) % 5 != 3)])
        log.close()


def expected(attempts):
    """The resume rule, row by row, as the documentation words it."""
    last = {
        n: max((s for _, block in blocks for s in block), default=None) for n, (_, blocks) in enumerate(attempts, 1)
    }

    def covers(attempt, step):
        start = attempts[attempt - 1][0]
        return last[attempt] is not None and (start < step or start == step == 0) and step <= last[attempt]

    values, owners, number = {}, {}, 0
    for n, (_, blocks) in enumerate(attempts, start=1):
        for _, block in blocks:
            for step in block:
                if not any(covers(later, step) for later in range(n + 1, len(attempts) + 1)):
                    owners[step] = n
                    if step % 5 != 3:
                        values[step] = float(number)
                number += 1
    return sorted(values.items()), sorted(owners.items())


STEPS = st.lists(st.integers(0, 25), min_size=1, max_size=6)
ATTEMPTS = st.lists(
    st.tuples(st.integers(0, 20), st.lists(st.tuples(st.just("s"), STEPS), max_size=3)), min_size=1, max_size=4
)


@settings(max_examples=40, deadline=None)
@given(attempts=ATTEMPTS)
def test_the_latest_attempt_of_each_step_counts(tmp_path_factory, attempts):
    folder = tmp_path_factory.mktemp("run")
    write(folder, attempts)
    view = open_run(folder)
    values, owners = expected(attempts)
    assert list(zip(view.steps.tolist(), view.attempt_of_steps.tolist(), strict=True)) == owners
    if "x" in view.columns:
        assert list(zip(view["x"].steps.tolist(), view["x"].values.tolist(), strict=True)) == values
    assert view.problems == ()


def test_a_run_killed_at_ten_and_resumed_from_six(tmp_path):
    write(tmp_path / "run", [(0, [("s", range(11))]), (6, [("s", range(7, 10))])])
    view = open_run(tmp_path / "run")
    assert view.steps.tolist() == list(range(11))
    assert view.attempt_of_steps.tolist() == [1] * 7 + [2] * 3 + [1]
    assert view["x"].at(9) == 13.0
    assert view["x"].at(10) == 10.0  # until the second attempt gets there
    write_more = LogWriter(tmp_path / "run", manifest={}, resume=True, start_step=0)
    write_more.rows("s", [0, 1, 2], [(X, np.array([7.0, 8.0, 9.0]), None)])
    write_more.close()
    assert open_run(tmp_path / "run").attempt_of_steps.tolist() == [3] * 3 + [1] * 4 + [2] * 3 + [1]


def test_a_run_begun_anew_covers_its_step_zero_too(tmp_path):
    write(tmp_path / "run", [(0, [("s", [0, 1, 2, 4])]), (0, [("s", [1, 2])]), (2, [("s", [5])])])
    view = open_run(tmp_path / "run")
    assert (view.steps.tolist(), view.attempt_of_steps.tolist()) == ([1, 2, 5], [2, 2, 3])


def test_columns_over_several_streams_are_one_series(tmp_path):
    write(tmp_path / "run", [(0, [("first", [1, 2, 4]), ("slow", [9, 14]), ("first", [5, 6])])])
    assert open_run(tmp_path / "run")["x"].steps.tolist() == [1, 2, 4, 5, 6, 9, 14]


def test_entries_that_come_later_are_nan_before(tmp_path):
    log = LogWriter(tmp_path / "run", manifest={})
    for step, labels in ((1, ("a", "b")), (2, ("b", "c", "a")), (3, ("c",))):
        axis = Axis(name="expert", labels=labels, weights=tuple(float(ord(name)) for name in labels))
        log.rows(
            "s", [step], [(Column(name="y", axis=axis), np.array([[10 * step + n for n in range(len(labels))]]), None)]
        )
    log.close()
    array = open_run(tmp_path / "run")["y"]
    assert array.labels == ("a", "b", "c")
    assert array.column.axis.weights == (97.0, 98.0, 99.0)
    nan = np.nan
    np.testing.assert_array_equal(array.values, [[10, 11, nan], [22, 20, 21], [nan, nan, 30]])
    for place, label in enumerate("abc"):
        np.testing.assert_array_equal(open_run(tmp_path / "run")["y"].entry(label), array.values[:, place])


def test_a_column_that_changes_its_kind_is_shown_as_it_is_now_and_said(tmp_path):
    log = LogWriter(tmp_path / "run", manifest={})
    log.rows("s", [1], [(X, np.ones(1), None)])
    log.rows("s", [2], [(Column(name="x", axis=Axis(name="l", labels=("a",))), np.ones((1, 1)), None)])
    log.close()
    with pytest.warns(UserWarning, match="was a number"):
        view = open_run(tmp_path / "run")
    assert view["x"].steps.tolist() == [2]


def test_refresh_reads_what_was_added_and_only_that(tmp_path, run, monkeypatch):
    from dynaxx.runlog import segments

    folder = tmp_path / "run"
    log = LogWriter(folder, manifest={})
    view = open_run(folder)
    assert view.steps.tolist() == []
    starts = []
    original = segments.read_frame
    monkeypatch.setattr(segments, "read_frame", lambda data, start: starts.append(start) or original(data, start))
    old = None
    for block in range(6):
        steps, grad, loss, there = run.rows(1 + 8 * block, 8)
        log.rows("every", steps, [(run.grad, grad, None), (run.loss, loss, there)])
        log.event("x", step=block)
        view.refresh()
        assert view["grad_norm"].steps.tolist() == list(range(1, 9 + 8 * block))
        assert len(view.events()) == block + 1
        old = old or (view["loss"], view["loss"].values.copy())
    assert len(starts) == len(set(starts)) == 7  # the schema and six batches, each once
    log.update_manifest(more=1)
    log.close()
    view.refresh()
    assert view.manifest["more"] == 1
    assert view.attempts[0].status == "finished"
    np.testing.assert_array_equal(old[0].values, old[1])  # arrays handed out stay as they were
    assert view.problems == view.notes == ()


def test_derived_columns_by_name(tmp_path, run):
    run.write(tmp_path / "run")
    view = open_run(tmp_path / "run")
    grad = view["grad_norm"].values
    np.testing.assert_allclose(view["grad_norm.total"], np.linalg.norm(grad.astype(float), axis=1), rtol=1e-12)
    np.testing.assert_array_equal(view["grad_norm.max"], grad.max(axis=1))
    np.testing.assert_array_equal(view["grad_norm[head]"], grad[:, 2])
    assert view["grad_norm.total"].steps.tolist() == list(range(1, 33))
    assert view["grad_norm[head].smoothed"].shape == view["grad_norm.total.smoothed"].shape == (32,)
    assert len(view["loss.smoothed"]) == len(view["loss"]) == 16
    assert (np.diff(view["wall"].values) >= 0).all()
    assert view["grad_norm.total"].column.unit == "1"


def test_a_stored_column_comes_before_a_derived_one(tmp_path, run):
    log = LogWriter(tmp_path / "run", manifest={})
    steps, grad, _, _ = run.rows(1, 4)
    log.rows("s", steps, [(run.grad, grad, None), (Column(name="grad_norm.total"), np.arange(4.0), None)])
    log.close()
    assert open_run(tmp_path / "run")["grad_norm.total"].values.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("los", "loss"),
        ("grad_norm.totl", "grad_norm.total"),
        ("loss.total", "loss"),
        ("grad_norm.smoothed", "grad_norm.total"),
    ],
)
def test_unknown_names_are_met_by_the_nearest(tmp_path, run, name, nearest):
    run.write(tmp_path / "run")
    with pytest.raises(UnknownName) as error:
        open_run(tmp_path / "run")[name]
    assert nearest in error.value.nearest


def test_a_column_that_does_not_collapse_says_so(tmp_path):
    log = LogWriter(tmp_path / "run", manifest={})
    log.rows("s", [1], [(Column(name="x", axis=Axis(name="l", labels=("a",))), np.ones((1, 1)), None)])
    log.close()
    view = open_run(tmp_path / "run")
    with pytest.raises(NotApplicable, match="do not collapse"):
        view["x.total"]
    assert list(view.to_pandas().columns) == []


def test_entries_layers_and_steps_of_an_array(tmp_path, run):
    run.write(tmp_path / "run")
    array = open_run(tmp_path / "run")["grad_norm"]
    assert array.shape == (32, 3)
    assert repr(array) == "<grad_norm: 32 steps 1–32 × 3 layers (stem, blocks.0, head)>"
    np.testing.assert_array_equal(array.layer("blocks.0"), array.entry(1))
    np.testing.assert_array_equal(array.entry(-1), array.values[:, 2])
    np.testing.assert_array_equal(array.at(5), array.values[4])
    assert np.asarray(array, dtype=np.float64).dtype == np.float64
    with pytest.raises(UnknownName, match="'head'"):
        array.layer("heat")
    with pytest.raises(BadInput, match="3 entries"):
        array.entry(3)
    with pytest.raises(BadInput, match="no entries"):
        array.entry(1).entry(1)
    with pytest.raises(BadInput, match="nearest: 32"):
        array.at(99)
    with pytest.raises(BadInput, match="nearest: 4, 6"):
        open_run(tmp_path / "run")["loss"].at(5)
    with pytest.raises(ValueError, match="read-only"):
        array.values[0, 0] = 1


def test_as_pandas(tmp_path, run):
    run.write(tmp_path / "run")
    view = open_run(tmp_path / "run")
    frame = view["grad_norm"].to_pandas()
    assert (frame.index.name, frame.columns.name, list(frame.columns)) == (
        "step",
        "layer",
        ["stem", "blocks.0", "head"],
    )
    np.testing.assert_array_equal(frame["head"], view["grad_norm"].values[:, 2])
    table = view.to_pandas()
    assert list(table.columns) == ["grad_norm.total", "loss"]
    pd.testing.assert_series_equal(table["loss"].dropna(), view["loss"].to_pandas())
    assert table["loss"].isna().sum() == 16


def test_as_xarray_or_a_word_on_how_to_get_it(tmp_path, run, monkeypatch):
    run.write(tmp_path / "run")
    array = open_run(tmp_path / "run")["grad_norm"]
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(NotApplicable, match=r'pip install "dynaxx\[xarray\]"'):
        array.to_xarray()
    monkeypatch.setitem(sys.modules, "xarray", SimpleNamespace(DataArray=lambda *a, **k: (a, k)))
    (values,), facts = array.to_xarray()
    assert values is array.values
    assert facts["dims"] == ("step", "layer")
    assert facts["coords"]["layer"] == ["stem", "blocks.0", "head"]
    assert facts["attrs"] == {"unit": "1", "about": "Norm of the gradient."}


def test_plots_are_drawn_by_the_figures(tmp_path, run, monkeypatch):
    run.write(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "dynaxx.figures", SimpleNamespace(draw=lambda view, name: (view, name)))
    view = open_run(tmp_path / "run")
    assert view.plot("loss") == view["loss"].plot() == (view, "loss")
    assert view["grad_norm"].layer("head").plot() == (view, "grad_norm[head]")


def test_paths_that_are_no_run(tmp_path, run):
    run.write(tmp_path / "runs" / "first")
    run.write(tmp_path / "runs" / "deeper" / "second")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "runs" / "frist", "Did you mean .*first"),
        (tmp_path / "nowhere" / "at" / "all", "Neither is"),
        (tmp_path / "runs", "runs inside it: .*second.*first"),
        (tmp_path / "empty", "run.json"),
        (tmp_path / "runs" / "first" / "run.json", "is a file"),
    ):
        with pytest.raises(BadInput, match=message):
            open_run(path)


def test_a_run_says_what_it_is(tmp_path, run):
    log = run.write(tmp_path / "run", close=False)
    view = open_run(tmp_path / "run")
    assert "32 steps up to 32, 2 columns, attempt 1: running or killed" in repr(view)
    log.close("stopped")
    view.refresh()
    assert repr(view).endswith("attempt 1: stopped>")
