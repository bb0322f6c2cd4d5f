import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dynaxx.core.records import Axis, Column, Measurement
from dynaxx.errors import DynaxxWarning
from dynaxx.runlog import LogWriter, open_run, recorder
from dynaxx.runlog.recorder import Recorder

LAYERS = Axis(name="layer", labels=("a", "b", "c"))
NORM = Column(name="norm", axis=LAYERS, reduce="l2")
MAX = Column(name="max", axis=LAYERS, reduce="max")
RATE = Column(name="rate", dtype="float64")
FOLD = (0, 1, 0, 2, 1)


class Sink:
    """Takes rows like the log and keeps them as dictionaries."""

    def __init__(self):
        self.upstream = None
        self.blocks = []

    def rows(self, stream, steps, columns, *, walls=None):
        assert walls is None or len(walls) == len(steps)
        for column, values, valid in columns:
            assert values.dtype == column.dtype
            assert values.shape == ((len(steps),) if column.axis is None else (len(steps), len(column.axis)))
            assert valid is None or valid.shape == (len(steps),)
        self.blocks.append((stream, list(steps), {c.name: (values, valid) for c, values, valid in columns}))

    def read(self, name):
        """Step → value, later rows over earlier ones."""
        found = {}
        for _, steps, columns in self.blocks:
            values, valid = columns.get(name, ([], None))
            for i, value in enumerate(values):
                if valid is None or valid[i]:
                    found[steps[i]] = value.tolist()
        return found


@pytest.fixture
def sink():
    return Sink()


def test_measurements_come_out_by_step_in_blocks(sink):
    record = Recorder(sink)
    for step in range(1, 6):
        record.add("every_1", step, [Measurement(column=MAX, value=torch.arange(3.0) * step)])
        if step % 2 == 0:
            record.add("every_2", step, [Measurement(column=RATE, value=0.1 * step)])
    assert sink.blocks == []
    record.drain()
    assert [(stream, steps) for stream, steps, _ in sink.blocks] == [("every_1", [1, 2, 3, 4, 5]), ("every_2", [2, 4])]
    assert sink.read("max") == {step: [0, step, 2 * step] for step in range(1, 6)}
    assert sink.read("rate") == {2: 0.2, 4: 0.4}
    record.drain()
    assert len(sink.blocks) == 2


def test_a_column_that_comes_now_and_then_is_masked_elsewhere(sink):
    record = Recorder(sink)
    for step in range(1, 8):
        values = [Measurement(column=MAX, value=torch.full((3,), float(step)))]
        if step in (2, 5):
            values.append(Measurement(column=RATE, value=float(step)))
        record.add("every_1", step, values)
    record.drain()
    _, steps, columns = sink.blocks[0]
    assert steps == list(range(1, 8))
    assert columns["rate"][1].tolist() == [step in (2, 5) for step in steps]
    assert columns["max"][1] is None
    assert sink.read("rate") == {2: 2.0, 5: 5.0}


def test_signals_of_one_stream_and_step_share_a_row(sink):
    record = Recorder(sink)
    record.add("every_1", 3, [Measurement(column=RATE, value=1.0)])
    record.add("every_1", 3, [Measurement(column=MAX, value=torch.zeros(3))])
    record.drain()
    assert [steps for _, steps, _ in sink.blocks] == [[3]]


def test_a_step_that_is_measured_again_replaces_what_was(sink):
    record = Recorder(sink)
    for step, value in [(1, 1.0), (1, 2.0), (2, 3.0)]:
        values = [Measurement(column=RATE, value=value)]
        if value < 3:
            values.append(Measurement(column=MAX, value=torch.full((3,), value)))
        record.add("every_1", step, values)
    record.drain()
    assert sink.read("rate") == {1: 2.0, 2: 3.0}
    assert sink.read("max") == {1: [2, 2, 2]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_folding_gives_the_norms_of_the_layers(sink, dtype):
    record = Recorder(sink)
    generator = torch.Generator().manual_seed(0)
    pieces = [[torch.randn(7, generator=generator) for _ in FOLD] for _ in range(4)]
    for step, tensors in enumerate(pieces, 1):
        norms = torch.stack([t.norm() for t in tensors]).to(dtype)
        record.add("every_1", step, [Measurement(column=NORM, value=norms, fold=FOLD)])
    record.drain()
    for step, tensors in enumerate(pieces, 1):
        truth = [
            float(torch.cat([t for t, row in zip(tensors, FOLD, strict=True) if row == i]).norm()) for i in range(3)
        ]
        assert sink.read("norm")[step] == pytest.approx(truth, rel=1e-2 if dtype == torch.bfloat16 else 1e-6)


def test_folding_neither_overflows_nor_mixes_layers(sink):
    record = Recorder(sink)
    value = torch.tensor([3e30, math.nan, 4e30, 1e-30, 1.0])
    record.add("every_1", 1, [Measurement(column=NORM, value=value, fold=FOLD)])
    record.drain()
    first, second, third = sink.read("norm")[1]
    assert first == pytest.approx(5e30, rel=1e-6)
    assert math.isnan(second)
    assert third == pytest.approx(1e-30, rel=1e-6)


def test_a_tensor_is_kept_as_it_was_measured(sink):
    """What has been handed over does not share memory with what was measured."""
    record = Recorder(sink)
    value = torch.ones(3)
    record.add("every_1", 1, [Measurement(column=MAX, value=value)])
    record.add("every_1", 2, [Measurement(column=MAX, value=value * 2)])
    record.drain()
    value.zero_()
    assert sink.read("max") == {1: [1, 1, 1], 2: [2, 2, 2]}


def test_numbers_sequences_and_tensors_may_take_turns(sink):
    record = Recorder(sink)
    axis = Axis(name="group", labels=("0", "1"))
    column = Column(name="lr", axis=axis, dtype="float64")
    values = [[0.1, 0.2], torch.tensor([0.3, 0.4], dtype=torch.float64), [0.5, 0.6]]
    for order in (values, values[1:] + values[:1]):
        for step, value in enumerate(order, 1):
            record.add("every_1", step, [Measurement(column=column, value=value)])
        record.drain()
        assert sink.read("lr") == {step: list(map(float, value)) for step, value in enumerate(order, 1)}


def grown(labels):
    return Column(name="lr", axis=Axis(name="group", labels=labels), dtype="float64")


def test_an_axis_that_changes_within_a_block_loses_nothing(sink):
    record = Recorder(sink)
    one, two = grown(("0",)), grown(("0", "1"))
    for step in range(1, 5):
        column, value = (one, [1.0 * step]) if step < 3 else (two, [1.0 * step, 2.0 * step])
        around = [Measurement(column=RATE, value=float(step)), Measurement(column=MAX, value=torch.zeros(3))]
        record.add("every_1", step, [around[0], Measurement(column=column, value=value), around[1]])
    record.drain()
    assert sink.read("lr") == {1: [1], 2: [2], 3: [3, 6], 4: [4, 8]}
    assert sink.read("rate") == {step: float(step) for step in range(1, 5)}
    assert sink.read("max") == {step: [0, 0, 0] for step in range(1, 5)}


def test_two_columns_of_one_name_do_not_go_round_in_circles(sink):
    record = Recorder(sink)
    record.add("every_1", 1, [Measurement(column=grown((label,)), value=[1.0]) for label in "abc"])
    record.drain()
    assert len(sink.blocks) == 3


def test_what_is_read_of_a_changed_axis_is_whole(tmp_path):
    log = LogWriter(tmp_path / "run", manifest={})
    record = Recorder(log)
    one, two = grown(("0",)), grown(("0", "1"))
    for step in range(1, 5):
        column, value = (one, [1.0 * step]) if step < 3 else (two, [1.0 * step, 2.0 * step])
        values = [Measurement(column=RATE, value=float(step)), Measurement(column=column, value=value)]
        record.add("every_1", step, values)
    record.drain()
    log.close()
    view = open_run(tmp_path / "run")
    assert list(view["rate"].steps) == [1, 2, 3, 4]
    assert np.asarray(view["rate"]).tolist() == [1, 2, 3, 4]
    table = np.asarray(view["lr"])
    assert table[:, 0].tolist() == [1, 2, 3, 4]
    assert table[2:, 1].tolist() == [6, 8]
    assert np.isnan(table[:2, 1]).all()


VALUES = [0.1, -0.0, 5e-324, math.pi, 1e300, math.inf, -math.inf, float(np.float32(0.1))]


@pytest.mark.parametrize("kind", [float, lambda x: torch.tensor(x, dtype=torch.float64)])
def test_one_value_a_step_is_kept_bit_for_bit(sink, kind):
    record = Recorder(sink)
    for step, value in enumerate(VALUES, 1):
        record.log(step, "loss", kind(value))
    record.drain()
    found = sink.read("loss")
    assert [found[step].hex() for step in range(1, len(VALUES) + 1)] == [value.hex() for value in VALUES]


def test_several_values_of_a_step_are_averaged_whatever_they_are(sink):
    record = Recorder(sink)
    for value in (1.0, torch.tensor(2.0), torch.tensor([[6.0]], dtype=torch.float64), torch.tensor(3)):
        record.log(7, "loss", value)
    record.log(8, "loss", math.nan)
    record.log(9, "loss", 5.0)
    record.log(8, "other", 1.0)
    record.drain()
    loss = sink.read("loss")
    assert loss[7] == 3.0
    assert math.isnan(loss[8])
    assert loss[9] == 5.0
    assert sink.read("other") == {8: 1.0}
    assert [block[:2] for block in sink.blocks] == [("log", [7, 8, 9])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_of_any_dtype_are_logged_exactly(sink, dtype):
    record = Recorder(sink)
    value = torch.tensor(1.3).to(dtype)
    record.log(1, "loss", value)
    record.drain()
    assert sink.read("loss") == {1: float(value)}


def test_the_values_of_the_step_in_progress_stay(sink):
    """They may still be joined by others of the same step, and are averaged with them."""
    record = Recorder(sink)
    record.log(1, "loss", 1.0)
    record.log(2, "loss", 2.0)
    record.drain(before=2)
    assert sink.read("loss") == {1: 1.0}
    record.log(2, "loss", 4.0)
    record.log(3, "loss", 9.0)
    record.drain(before=2)
    assert sink.read("loss") == {1: 1.0}
    record.drain(before=3)
    assert sink.read("loss") == {1: 1.0, 2: 3.0}
    record.drain()
    assert sink.read("loss") == {1: 1.0, 2: 3.0, 3: 9.0}


def test_a_value_that_comes_late_still_finds_its_step(tmp_path):
    log = LogWriter(tmp_path / "run", manifest={})
    record = Recorder(log)
    for step in (1, 2, 3, 4):
        record.log(step, "loss", float(step))
    record.drain(before=4)
    record.log(2, "val_loss", 20.0)
    record.drain()
    log.close()
    view = open_run(tmp_path / "run")
    assert list(view["loss"].steps) == [1, 2, 3, 4]
    assert np.asarray(view["loss"]).tolist() == [1, 2, 3, 4]
    assert list(view["val_loss"].steps) == [2]


def test_a_block_of_steps_is_drained_and_so_is_a_second(sink, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(recorder.time, "perf_counter", lambda: clock[0])
    record = Recorder(sink, block=4)
    seen = []
    for step in range(1, 10):
        record.add("every_1", step, [Measurement(column=RATE, value=float(step))])
        record.log(step, "loss", float(step))
        clock[0] += 2 * recorder.SECONDS if step == 6 else 0.01
        record.tick(step)
        seen.append(len(sink.read("rate")))
    assert seen == [0, 0, 0, 4, 4, 6, 6, 8, 8]
    assert list(sink.read("loss")) == [1, 2, 3, 4, 5, 6, 7]  # the step of each drain keeps its own


@pytest.mark.parametrize(
    ("takes", "apart"), [(0.0001, recorder.SECONDS), (0.004, 0.004 / recorder.SHARE), (1.0, recorder.SLOWEST)]
)
def test_slow_drains_come_more_rarely_within_bounds(sink, monkeypatch, takes, apart):
    clock = [100.0]
    monkeypatch.setattr(recorder.time, "perf_counter", lambda: clock[0])
    rows = sink.rows

    def slow(*arguments, **keywords):
        clock[0] += takes
        rows(*arguments, **keywords)

    sink.rows = slow
    record = Recorder(sink, block=10**6)
    drained = []
    for step in range(1, 4000):
        record.add("every_1", step, [Measurement(column=RATE, value=float(step))])
        clock[0] += 0.01
        before = len(sink.blocks)
        record.tick(step)
        if len(sink.blocks) > before:
            drained.append(clock[0])
    assert np.diff(drained) == pytest.approx(apart + takes, abs=0.011)  # the clock moves by 0.01 a step


def test_without_a_writer_values_are_dropped():
    record = Recorder(None, block=2)
    for step in (1, 2, 3):
        record.add("every_1", step, [Measurement(column=NORM, value=torch.ones(5), fold=FOLD)])
        record.log(step, "loss", 1.0)
        record.tick(step)
    record.drain()
    assert record._streams["every_1"].steps == []
    assert not any(record._user.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_on_an_accelerator_a_block_comes_one_window_late_and_in_order(sink):
    record = Recorder(sink)
    record.add("every_1", 1, [Measurement(column=MAX, value=torch.ones(3, device="cuda"))])
    record.drain(before=2)
    assert sink.blocks == []
    record.add("every_1", 2, [Measurement(column=RATE, value=1.0)])
    record.drain(before=3)
    record.drain()
    assert [steps for _, steps, _ in sink.blocks] == [[1], [2]]
    assert sink.read("max") == {1: [1, 1, 1]}


def test_a_plug_in_whose_values_do_not_fit_costs_its_rows_not_the_training(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "run", manifest={})
    collector = Recorder(writer)
    wrong = Column(name="wrong", axis=Axis(name="layer", labels=("a", "b")))
    collector.add("every_1", 1, [Measurement(column=wrong, value=torch.ones(3))])
    with pytest.warns(DynaxxWarning, match="1 rows of wrong are lost"):
        collector.drain()
    writer.close()
