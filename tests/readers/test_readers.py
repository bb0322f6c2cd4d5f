"""Logs of other tools become logs of ours: names, steps, sparse columns, and a clear word where they cannot be read."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from dynaxx import BadInput, open_run, watch
from dynaxx.errors import NotApplicable
from dynaxx.readers import read_log


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_lightning_metrics_with_validation_in_rows_of_their_own(tmp_path: Path):
    rows: list[dict[str, object]] = []
    for step in range(0, 30, 10):
        rows.append({"step": step, "epoch": 0, "train_loss_step": 2.0 - step / 100})
        rows.append({"step": step, "epoch": 0, "val_loss": 3.0 - step / 100, "lr-AdamW": 1e-3})
    log = read_log(written(tmp_path / "metrics.csv", rows))
    np.testing.assert_array_equal(log["loss"].steps, [0, 10, 20])
    np.testing.assert_allclose(log["loss"].values, [2.0, 1.9, 1.8])
    np.testing.assert_allclose(log["val_loss"].values, [3.0, 2.9, 2.8])
    np.testing.assert_allclose(log["lr"].values, 1e-3)
    assert log.manifest["facts"]["steps are"] == "optimizer steps, as logged"


def test_keras_counts_epochs(tmp_path: Path):
    rows: list[dict[str, object]] = [{"epoch": e, "loss": 1 / (1 + e), "val_loss": 1.0} for e in range(4)]
    log = read_log(written(tmp_path / "keras.csv", rows))
    np.testing.assert_array_equal(log["loss"].steps, [0, 1, 2, 3])
    assert log.manifest["facts"]["steps are"] == "epochs"


def test_semicolons_words_and_a_byte_order_mark(tmp_path: Path):
    path = tmp_path / "excel.csv"
    path.write_text("Step;Train Loss;who\n1;0.5;me\n2;n/a;me\n3;0.25;me\n", encoding="utf-8-sig")
    log = read_log(path)
    np.testing.assert_array_equal(log["loss"].steps, [1, 3])
    assert "who" not in log.columns


def test_json_lines_nested_with_other_text_and_a_torn_end(tmp_path: Path):
    path = tmp_path / "train.log"
    lines = ["starting", *(json.dumps({"_step": s, "train": {"loss": 1.0 / s, "grad_norm": 2.0}}) for s in (1, 2, 3))]
    path.write_text("\n".join([*lines, '{"_step": 4, "tra']))
    log = read_log(path)
    np.testing.assert_allclose(log["loss"].values, [1.0, 1 / 2, 1 / 3])
    np.testing.assert_allclose(log["grad_norm.total"].values, 2.0)


def test_trainer_state_of_the_newest_checkpoint(tmp_path: Path):
    for step in (10, 200):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        history = [{"step": s, "loss": 1.0 / s, "learning_rate": 1e-4} for s in range(10, step + 1, 10)]
        state = {"log_history": [*history, {"step": step, "eval_loss": 0.5}], "max_steps": 1000}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    log = read_log(tmp_path)
    assert (int(log.steps[-1]), log.manifest["steps"]) == (200, 1000)
    assert log["val_loss"].values[-1] == 0.5


def test_tensorboard_scalars(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter  # type: ignore[attr-defined]

    with SummaryWriter(str(tmp_path)) as writer:  # type: ignore[no-untyped-call]
        for step in range(5):
            writer.add_scalar("train/loss", 2.0**-step, step)  # type: ignore[no-untyped-call]
    log = read_log(tmp_path)
    np.testing.assert_allclose(log["loss"].values, [1.0, 0.5, 0.25, 0.125, 0.0625])


def test_tensorboard_folder_of_several_runs_is_refused(tmp_path: Path):
    for run in "ab":
        (tmp_path / run).mkdir()
        (tmp_path / run / "events.out.tfevents.1").write_bytes(b"")
    with pytest.raises(BadInput, match="2 runs"):
        read_log(tmp_path)


def test_two_runs_in_one_file_are_refused(tmp_path: Path):
    rows: list[dict[str, object]] = [{"step": s, "loss": 1.0} for s in (1, 2, 3, 1, 2)]
    with pytest.raises(BadInput, match="begin anew in row 4"):
        read_log(written(tmp_path / "two.csv", rows))


def test_a_resumption_overtakes_what_it_repeats(tmp_path: Path):
    rows: list[dict[str, object]] = [{"step": s, "loss": float(v)} for s, v in [(1, 9), (2, 8), (3, 7), (2, 5), (3, 4)]]
    np.testing.assert_allclose(read_log(written(tmp_path / "resumed.csv", rows))["loss"].values, [9, 5, 4])


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [("a.csv", "", "empty"), ("b.csv", "step,loss\n", "no row with a number"), ("c.bin", "?", "no reader knows")],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, text: str, says: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=says):
        read_log(tmp_path / name)


def test_a_missing_path_offers_the_nearest(tmp_path: Path):
    (tmp_path / "first").mkdir()
    with pytest.raises(BadInput, match="Did you mean"):
        read_log(tmp_path / "frist")


def test_our_own_run_is_a_log_too(tmp_path: Path):
    import torch

    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path / "run", quiet=True) as run:
        for _ in range(3):
            loss = model(torch.ones(4, 2)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.log(loss=loss)
    np.testing.assert_array_equal(read_log(tmp_path / "run")["loss"].values, open_run(tmp_path / "run")["loss"].values)


def test_without_the_library_event_files_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    (tmp_path / "events.out.tfevents.1").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_file_loader", None)
    with pytest.raises(NotApplicable, match="pip install"):
        read_log(tmp_path)
