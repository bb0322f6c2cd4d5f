"""What is broken on disk is missing from the view and named; nothing is ever silently wrong."""

import random
import shutil

import numpy as np
import pytest

from dynaxx.core.records import Column
from dynaxx.errors import DynaxxWarning
from dynaxx.runlog import LogWriter, appender, open_run
from dynaxx.runlog.frames import END, read_frame


def the_segment(folder):
    (path,) = (folder / "data").glob("*.arrows")
    return path


def frames(data):
    """Start, body and end of every message."""
    found, at = [], 0
    while at < len(data) and data[at:] != END:
        frame = read_frame(data, at)
        found.append((frame.start, frame.body, frame.end))
        at = frame.end
    return found


@pytest.fixture
def killed(tmp_path, run):
    """A run as a killed process leaves it."""
    log = run.write(tmp_path / "live", blocks=3, close=False)
    shutil.copytree(tmp_path / "live", tmp_path / "run")
    log.close()
    return tmp_path / "run"


def test_a_torn_end_is_read_up_to_the_last_whole_batch_at_every_length(killed, run):
    path = the_segment(killed)
    data = path.read_bytes()
    last = frames(data)[-1][0]
    whole = run.truth(blocks=2)
    for end in range(last, len(data)):
        path.write_bytes(data[:end])
        view = open_run(killed)  # a warning would be an error here
        assert view.problems == ()
        assert [note.at for note in view.notes] == ([] if end == last else [last])
        for name, truth in whole.items():
            array = view[name]
            assert {int(s): v.tobytes() for s, v in zip(array.steps, array.values, strict=True)} == truth


def test_an_end_of_zeros_is_a_torn_end(killed, read, run):
    """What a power loss leaves of an append on many file systems."""
    path = the_segment(killed)
    data = path.read_bytes()
    last = frames(data)[-1][0]
    path.write_bytes(data[:last] + bytes(len(data) - last))
    view, found = read(killed)
    assert found == run.truth(blocks=2)
    assert len(view.notes) == 1


@pytest.mark.parametrize("cut", [1, 8, 100, 2000])
def test_a_closed_segment_that_was_cut_short_is_a_problem(tmp_path, run, cut):
    run.write(tmp_path / "run")
    path = the_segment(tmp_path / "run")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.warns(DynaxxWarning, match="cannot be read"):
        view = open_run(tmp_path / "run")
    assert [problem.file for problem in view.problems] == ["data/every-0001-0001.arrows"]


def check_flip(folder, read, truth, path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    view, found = read(folder)
    for name, rows in found.items():
        wrong = [step for step, row in rows.items() if truth[name].get(step) != row]
        assert not wrong, f"bit {bit}: {name} is silently wrong at {wrong}"
        assert view[name].labels == (("stem", "blocks.0", "head") if name == "grad_norm" else ())
        assert view[name].column.unit == "1"
    if found != truth:
        assert view.problems or view.notes, f"bit {bit}: rows are missing and nobody says so"
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return view, found


def test_flipped_bits_anywhere_in_a_segment_are_noticed(killed, read, run):
    path = the_segment(killed)
    bits = range(8 * path.stat().st_size)
    for bit in random.Random(0).sample(bits, 400):
        check_flip(killed, read, run.truth(blocks=3), path, bit)


@pytest.mark.slow
def test_every_bit_of_a_segment_flipped(killed, read, run):
    path = the_segment(killed)
    for bit in range(8 * path.stat().st_size):
        check_flip(killed, read, run.truth(blocks=3), path, bit)


def test_a_flipped_bit_costs_one_column_of_one_batch(killed, read, run):
    path = the_segment(killed)
    data = path.read_bytes()
    _, body, end = frames(data)[2]
    truth, lost = run.truth(blocks=3), {"grad_norm": 0, "loss": 0, "both": 0, "padding or times": 0}
    for byte in range(body, end):
        bit = 8 * byte + byte % 8
        view, found = check_flip(killed, read, truth, path, bit)
        missing = {name: set(truth[name]) - set(found[name]) for name in truth}
        assert all(steps <= set(range(9, 17)) for steps in missing.values())
        which = [name for name, steps in missing.items() if steps]
        lost["both" if len(which) == 2 else which[0] if which else "padding or times"] += 1
        assert all(missing[name] == set(truth[name]) & set(range(9, 17)) for name in which)
        assert len(view.problems) == (1 if which else 0)
    # 8 rows: steps of 8 bytes; three float32; a byte of validity and float64.
    assert lost == {"both": 64, "grad_norm": 96, "loss": 65, "padding or times": end - body - 225}


def test_a_broken_batch_does_not_hide_those_behind_it(killed, read, run):
    path = the_segment(killed)
    start = frames(path.read_bytes())[1][0]
    for place in (start, start + 4, start + 60):
        view, found = check_flip(killed, read, run.truth(blocks=3), path, 8 * place)
        assert set(found["grad_norm"]) == set(range(9, 25))
        (problem,) = view.problems
        assert (problem.file, problem.at) == ("data/every-0001-0001.arrows", start)


def test_a_broken_schema_is_read_from_its_copy(killed, read, run):
    path = the_segment(killed)
    view, found = check_flip(killed, read, run.truth(blocks=3), path, 8 * 200)
    assert found == run.truth(blocks=3)
    assert [problem.at for problem in view.problems] == [0]
    for copy in (killed / "data" / "schemas").iterdir():
        copy.write_bytes(copy.read_bytes()[:-9])
    view, found = check_flip(killed, read, run.truth(blocks=3), path, 8 * 200)
    assert found == {}
    assert [(problem.at, problem.lost) for problem in view.problems] == [(0, f"{path.stat().st_size} bytes")]


def test_garbage_in_the_middle_and_missing_bytes(killed, read, run):
    path = the_segment(killed)
    data = path.read_bytes()
    (_, first, second, _) = frames(data)
    truth = run.truth(blocks=3)
    for broken, expected in (
        (data[: second[0]] + b"\xff" * 1001 + data[second[0] :], set(range(1, 25))),
        # The bytes that are missing here are taken from the next batch, which is lost with it.
        (data[: first[1] + 5] + data[first[1] + 50 :], set(range(17, 25))),
        (random.Random(0).randbytes(5000), None),
    ):
        path.write_bytes(broken)
        view, found = read(killed)
        assert set(found["grad_norm"]) == expected if expected else not found
        assert all(truth[name][step] == row for name in found for step, row in found[name].items())
        assert view.problems


def test_flipped_bits_in_events_and_records_are_named(tmp_path, read, run):
    folder = tmp_path / "run"
    run.write(folder)
    whole = open_run(folder)
    for name in ("events.jsonl", "run.json", "attempts/1.json"):
        path = folder / name
        data = path.read_bytes()
        for bit in random.Random(1).sample(range(8 * len(data)), 150):
            broken = bytearray(data)
            broken[bit // 8] ^= 1 << bit % 8
            path.write_bytes(broken)
            view, found = read(folder)
            assert found == run.truth()
            if (view.events(), dict(view.manifest), view.attempts) != (
                whole.events(), dict(whole.manifest), whole.attempts,
            ):  # fmt: skip
                assert name in {problem.file for problem in (*view.problems, *view.notes)}, bit
        path.write_bytes(data)


def test_a_torn_event_costs_one_event(tmp_path, run):
    folder = tmp_path / "run"
    run.write(folder)
    path = folder / "events.jsonl"
    line = path.read_bytes()
    for end in range(len(line)):
        path.write_bytes(line + line[:end])
        view = open_run(folder)
        assert len(view.events()) == 1
        assert len(view.notes) == (end > 0)
    path.write_bytes(line + line[:40])
    log = LogWriter(folder, manifest={}, resume=True, start_step=32)
    log.event("x", step=33)
    log.close()
    view = open_run(folder)
    assert [event["kind"] for event in view.events()] == ["finding", "x"]
    assert [note.what for note in view.notes] == ["torn line"]
    assert view.problems == ()


def test_a_segment_that_cannot_be_opened_is_named(tmp_path, run, read):
    run.write(tmp_path / "run")
    path = tmp_path / "run" / "data" / "other-0001-0001.arrows"
    path.mkdir()
    view, found = read(tmp_path / "run")
    assert found == run.truth()
    assert path.name in str(view.problems)


def test_big_segments_are_mapped_and_broken_ones_too(tmp_path, read):
    log = LogWriter(tmp_path / "run", manifest={})
    values = np.random.default_rng(0).standard_normal((10, 2**17))
    for block in range(10):
        log.rows(
            "s", [block], [(Column(name=f"c{n}", dtype="float64"), values[block, n : n + 1], None) for n in range(9)]
        )
        log.rows(
            "big", np.arange(2**16) + block * 2**16, [(Column(name="x", dtype="float64"), values[block, : 2**16], None)]
        )
    log.close()
    path = tmp_path / "run" / "data" / "big-0001-0001.arrows"
    assert path.stat().st_size > 4 * 2**20
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    view, found = read(tmp_path / "run")
    assert len(found["x"]) == 9 * 2**16
    assert len(view.problems) == 1
    assert len(found["c3"]) == 10


def test_segments_are_many_where_columns_are_new(tmp_path, monkeypatch):
    """Many resumes leave many files; small ones are not kept open."""
    import resource

    monkeypatch.setattr(appender, "ROTATE", 1)
    log = LogWriter(tmp_path / "run", manifest={})
    for step in range(200):
        log.rows("s", [step], [(Column(name="x"), np.ones(1), None)])
    log.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        assert len(open_run(tmp_path / "run")["x"]) == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
