import json
import warnings

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dynaxx.core.records import Axis, Column
from dynaxx.errors import BadInput, DynaxxWarning, RunFolderExists
from dynaxx.runlog import LogWriter, appender, open_run

WEIRD = st.sampled_from([float("nan"), -float("nan"), float("inf"), -0.0, 1e-42, 3.4e38])


@st.composite
def blocks(draw):
    """A few blocks of one stream, each of up to three columns that come and go."""
    columns = []
    for n in range(draw(st.integers(1, 3))):
        entries = draw(st.integers(0, 4))
        axis = Axis(name="layer", labels=tuple(f"ü{n}.{e}" for e in range(entries))) if entries else None
        columns.append(Column(name=f"c{n} ✓", axis=axis, dtype=draw(st.sampled_from(["float32", "float64"]))))
    made, first = [], 1
    for _ in range(draw(st.integers(1, 4))):
        rows = draw(st.integers(1, 20))
        block = []
        for column in draw(st.lists(st.sampled_from(columns), min_size=1, unique=True)):
            shape = (rows,) if column.axis is None else (rows, len(column.axis))
            width = 32 if column.dtype == "float32" else 64
            values = draw(arrays(column.dtype, shape, elements=st.floats(width=width) | WEIRD))
            block.append((column, values, draw(st.none() | arrays(bool, rows))))
        made.append((np.arange(first, first + rows), block))
        first += rows
    return made


@settings(max_examples=60, deadline=None)
@given(blocks=blocks())
def test_every_bit_comes_back_and_missing_is_not_nan(tmp_path_factory, blocks):
    folder = tmp_path_factory.mktemp("run")
    log = LogWriter(folder, manifest={})
    truth = {}
    for steps, block in blocks:
        log.rows("s", steps, block)
        for column, values, valid in block:
            told = truth.setdefault(column.name, {})
            there = np.ones(len(steps), bool) if valid is None else valid
            told.update({int(s): v.tobytes() for s, v, t in zip(steps, values, there, strict=True) if t})
    log.close()
    view = open_run(folder)
    assert set(view.columns) == set(truth)
    for name, told in truth.items():
        array = view[name]
        assert {int(s): v.tobytes() for s, v in zip(array.steps, array.values, strict=True)} == told
        assert array.steps.tolist() == sorted(told)
        for entry, label in enumerate(array.labels):
            assert view[name].entry(label).values.tobytes() == array.values[:, entry].tobytes()
    assert view.problems == view.notes == ()
    rows = sum(pa.ipc.open_stream(path.read_bytes()).read_all().num_rows for path in folder.glob("data/*.arrows"))
    assert rows == sum(len(steps) for steps, _ in blocks)


def test_any_arrow_reader_reads_the_files(tmp_path, run):
    run.write(tmp_path / "run", blocks=3, size=5)
    (path,) = (tmp_path / "run" / "data").glob("*.arrows")
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
        table = reader.read_all()
    table.validate(full=True)
    assert table.column_names == ["step", "wall", "grad_norm", "loss"]
    assert table["step"].to_pylist() == list(range(1, 16))
    parts = [run.rows(first, 5) for first in (1, 6, 11)]
    grad = table["grad_norm"].combine_chunks().flatten().to_numpy().reshape(15, 3)
    assert grad.tobytes() == np.concatenate([part[1] for part in parts]).tobytes()
    loss = [float(v) if t else None for _, _, values, there in parts for v, t in zip(values, there, strict=True)]
    assert table["loss"].to_pylist() == loss
    facts = json.loads(table.schema.field("grad_norm").metadata[b"dynaxx"])
    assert facts == {"unit": "1", "reduce": "l2", "about": "Norm of the gradient.", "axis": "layer"}
    axes = json.loads(table.schema.metadata[b"dynaxx"])["axes"]
    assert axes == {"layer": {"name": "layer", "labels": ["stem", "blocks.0", "head"], "weights": [1.0, 2.0, 5.0]}}
    assert abs(table["wall"][0].as_py() - table["wall"][-1].as_py()) < 60


def test_the_callers_arrays_are_copied(tmp_path):
    log = LogWriter(tmp_path / "run", manifest={})
    values, steps = np.zeros(1000), np.arange(1000)
    log.rows("s", steps, [(Column(name="x", dtype="float64"), values, None)])
    values += 1
    steps += 5000
    log.close()
    array = open_run(tmp_path / "run")["x"]
    assert array.values.max() == 0
    assert array.steps[-1] == 999


def test_beyond_float32_is_infinity_without_a_word(tmp_path):
    log = LogWriter(tmp_path / "run", manifest={})
    log.rows("s", [1], [(Column(name="x"), np.array([1e300]), None)])
    log.close()
    assert open_run(tmp_path / "run")["x"].at(1) == np.inf


def test_columns_that_come_and_go_do_not_begin_files(tmp_path):
    log = LogWriter(tmp_path / "run", manifest={})
    loss, late = Column(name="loss", dtype="float64"), Column(name="val_loss", dtype="float64")
    for n in range(1, 41):
        both = [(loss, np.array([1.0 * n]), None), (late, np.array([2.0 * n]), None)]
        log.rows("log", [n], both if n % 4 == 0 else both[:1])
    log.close()
    assert sorted(p.name for p in (tmp_path / "run" / "data").glob("*.arrows")) == [
        "log-0001-0001.arrows",
        "log-0001-0002.arrows",
    ]
    view = open_run(tmp_path / "run")
    assert view["val_loss"].steps.tolist() == list(range(4, 41, 4))
    assert view["val_loss"].values.tolist() == [2.0 * n for n in range(4, 41, 4)]
    assert len(view["loss"]) == 40


def test_a_full_segment_is_followed_by_another(tmp_path, run, monkeypatch):
    monkeypatch.setattr(appender, "ROTATE", 4000)
    run.write(tmp_path / "run", blocks=12)
    sizes = [p.stat().st_size for p in sorted((tmp_path / "run" / "data").glob("*.arrows"))]
    assert len(sizes) > 2
    assert min(sizes[:-1]) >= 4000
    view = open_run(tmp_path / "run")
    assert view["grad_norm"].steps.tolist() == list(range(1, 97))
    assert view.problems == view.notes == ()
    assert len(list((tmp_path / "run" / "data" / "schemas").iterdir())) == 1


def test_axes_of_one_name_are_kept_apart(tmp_path):
    layers, experts = Axis(name="layer", labels=("a", "b")), Axis(name="layer", labels=("a", "b", "c"))
    columns = [Column(name="x", axis=layers), Column(name="y", axis=experts), Column(name="z", axis=layers)]
    log = LogWriter(tmp_path / "run", manifest={})
    log.rows("s", [1], [(c, np.ones((1, len(c.axis))), None) for c in columns])
    log.close()
    view = open_run(tmp_path / "run")
    assert [view[name].labels for name in "xyz"] == [layers.labels, experts.labels, layers.labels]


def test_a_folder_with_a_run_is_refused_unless_resumed(tmp_path, run):
    folder = tmp_path / "run"
    run.write(folder)
    with pytest.raises(RunFolderExists, match="resume=True"):
        LogWriter(folder, manifest={})
    with LogWriterClosed(folder, manifest={"name": "other", "more": 1}, resume=True, start_step=3) as log:
        assert log.attempt == 2
    view = open_run(folder)
    assert view.manifest == {"name": "test", "more": 1, "format": 1}
    assert [(a.n, a.start_step, a.status, a.lost) for a in view.attempts] == [
        (1, 0, "finished", 0),
        (2, 3, "finished", 0),
    ]


class LogWriterClosed:
    """A writer that is closed at the end of a with-block."""

    def __init__(self, *arguments, **options):
        self.log = LogWriter(*arguments, **options)

    def __enter__(self):
        return self.log

    def __exit__(self, *error):
        self.log.close()


def test_a_run_killed_before_its_manifest_is_resumed(tmp_path, run):
    folder = tmp_path / "run"
    run.write(folder)
    (folder / "run.json").unlink()
    (folder / "attempts" / "1.json").write_bytes(b"")
    with pytest.raises(RunFolderExists):
        LogWriter(folder, manifest={})
    with LogWriterClosed(folder, manifest={"name": "again"}, resume=True, start_step=32) as log:
        assert log.attempt == 2
    view = open_run(folder)
    assert view.manifest["name"] == "again"
    assert len(view.steps) == 32
    assert [note.file for note in view.notes] == ["attempts/1.json"]
    assert view.problems == ()


def test_an_empty_or_missing_folder_can_be_resumed_and_an_unrelated_one_used(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for folder in (tmp_path / "missing", tmp_path):
        with LogWriterClosed(folder, manifest={}, resume=True) as log:
            assert log.attempt == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_two_processes_on_one_folder_get_different_attempts(tmp_path, run):
    first = run.write(tmp_path / "run", close=False)
    second = run.write(tmp_path / "run", close=False, resume=True)
    first.close()
    second.close()
    assert [a.n for a in open_run(tmp_path / "run").attempts] == [1, 2]


def test_a_broken_manifest_is_set_aside_on_resume(tmp_path, run):
    folder = tmp_path / "run"
    run.write(folder)
    broken = (folder / "run.json").read_bytes().replace(b"test", b"tost")
    (folder / "run.json").write_bytes(broken)
    LogWriter(folder, manifest={"name": "given again"}, resume=True, start_step=32).close()
    assert open_run(folder).manifest["name"] == "given again"
    assert (folder / "run.json.unreadable").read_bytes() == broken


def test_a_newer_format_is_refused(tmp_path, run):
    from dynaxx.runlog.sealed import seal

    run.write(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_bytes(seal({"format": 2}))
    for call in (open_run, lambda folder: LogWriter(folder, manifest={}, resume=True)):
        with pytest.raises(BadInput, match="format 2"):
            call(tmp_path / "run")


def test_the_manifest_is_updated(tmp_path):
    with LogWriterClosed(tmp_path / "run", manifest={"a": 1, "b": 2}) as log:
        log.update_manifest(b=float("inf"), c=[1])
        assert open_run(tmp_path / "run").manifest == {"a": 1, "b": "Infinity", "c": [1], "format": 1}


def test_events_come_back_in_order(tmp_path):
    log = LogWriter(tmp_path / "run", manifest={})
    for n in range(5):
        log.event("finding" if n % 2 else "receipt", step=n, value=float("nan"), where={"layer": "ü\n"})
    log.close()
    view = open_run(tmp_path / "run")
    assert [event["step"] for event in view.events()] == list(range(5))
    (first, _) = view.events("finding")
    assert (first["kind"], first["attempt"], first["value"], first["where"]) == ("finding", 1, "NaN", {"layer": "ü\n"})
    assert all(json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines())
    with LogWriterClosed(tmp_path / "other", manifest={}) as log, pytest.raises(BadInput, match=r"\['time'\]"):
        log.event("x", step=1, time=3)


def bad(name="x", values=(1.0,), valid=None, axis=None):
    mask = None if valid is None else np.array(valid)
    return [(Column(name=name, axis=axis), np.array(values), mask)]


@pytest.mark.parametrize(
    ("stream", "steps", "columns", "options", "message"),
    [
        ("a/b", [1], bad(), {}, "stream is named"),
        ("", [1], bad(), {}, "stream is named"),
        ("s", [1], bad("step"), {}, "none 'step' or 'wall'"),
        ("s", [1], bad("") + bad("y"), {}, "different names"),
        ("s", [1], bad() + bad(), {}, "different names"),
        ("s", [1], bad("a\nb"), {}, "printable"),
        ("s", [1], bad("\ud800"), {}, "printable"),
        ("s", [1, 2], bad(), {}, r"must have shape \(2,\)"),
        ("s", [1], bad(values=[[1.0]]), {}, r"must have shape \(1,\)"),
        ("s", [1], bad(values=[[1.0]], axis=Axis(name="l", labels=("a", "b"))), {}, r"must have shape \(1, 2\)"),
        ("s", [1], bad(values=[[]], axis=Axis(name="l", labels=())), {}, "must have shape"),
        ("s", [1], bad(valid=[True, False]), {}, "mask"),
        ("s", [[1]], bad(), {}, "steps"),
        ("s", [1], bad(), {"walls": [1.0, 2.0]}, "walls"),
    ],
)
def test_bad_rows_are_refused_in_the_callers_thread(tmp_path, stream, steps, columns, options, message):
    with LogWriterClosed(tmp_path / "run", manifest={}) as log, pytest.raises(BadInput, match=message):
        log.rows(stream, steps, columns, **options)
    assert not (tmp_path / "run" / "data").exists()


def test_a_closed_log_takes_nothing(tmp_path, run):
    log = run.write(tmp_path / "run")
    assert log.closed
    log.close("killed")  # the second close says nothing
    for call in (lambda: log.rows("s", [1], bad()), lambda: log.event("x", step=1), lambda: log.update_manifest(a=1)):
        with pytest.raises(BadInput, match="is closed"):
            call()
    assert log.flush(fsync=True)
    assert open_run(tmp_path / "run").attempts[0].status == "finished"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file"):
        LogWriter(tmp_path / "file", manifest={})


def test_an_impossible_folder_warns_once_and_counts_what_is_lost(tmp_path):
    """What a read-only folder is to a user: every call to make something fails."""
    (tmp_path / "file").write_text("")
    with pytest.warns(DynaxxWarning, match="Training goes on") as caught:
        log = LogWriter(tmp_path / "file" / "run", manifest={})
    assert caught[0].filename == __file__
    for step in range(3):
        log.rows("s", [step], bad())
    log.event("x", step=1)
    assert not log.flush()
    log.close()
    assert log.lost == 3


def test_a_live_run_is_flushed_before_it_is_read(tmp_path):
    log = LogWriter(tmp_path / "run", manifest={})
    with warnings.catch_warnings(record=True) as caught:
        for step in range(1, 30):
            log.rows("s", [step], bad())
            assert open_run(str(tmp_path) + "/../" + tmp_path.name + "/run").steps[-1] == step
    assert not caught
    log.close()
