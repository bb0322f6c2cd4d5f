"""The command line as a user meets it: output, exit codes, one clear line for bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dynaxx.cli import run

TASK = '''
import torch
from torch import nn
import dynaxx

class Line(dynaxx.Task):
    """Fit a line."""
    steps, batch_size, threads = 60, 8, 1
    def model(self): return nn.Linear(1, 1)
    def optimizer(self, model): return torch.optim.SGD(model.parameters(), lr=0.1)
    def batches(self, split, seed):
        x = torch.randn(64, 1, generator=torch.Generator().manual_seed(seed % 1000))
        return [(b, 2 * b) for b in x.split(self.batch_size)]
    def loss(self, model, batch): return nn.functional.mse_loss(model(batch[0]), batch[1])

class Nan(Line):
    """Its data holds NaN."""
    def batches(self, split, seed): return [(torch.full((8, 1), torch.nan), torch.ones(8, 1))]

class Vector(Line):
    """Its loss is not a scalar."""
    def loss(self, model, batch): return (model(batch[0]) - batch[1]).square()

class Empty(Line):
    """It has no data."""
    def batches(self, split, seed): return [] if split == "train" else super().batches(split, seed)

class Late(Line):
    """It breaks in the middle."""
    count = 0
    def loss(self, model, batch):
        Late.count += model.training
        if Late.count == 30: raise RuntimeError("the data server is gone")
        return super().loss(model, batch)
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(TASK)
    return path


def test_help_is_light() -> None:
    code = (
        "import sys\n"
        "from dynaxx.cli import run\n"
        "assert run(['--help']) == 0 and run(['train', '--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'pyarrow', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)


def test_train_report_and_resume(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert run(["train", f"{file}:Line", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "step 60/60" in said.out
    assert "finished at step 60 of 60" in said.out
    assert f"dynaxx report {out}" in said.out
    assert run(["train", f"{file}:Line", "--out", str(out)]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert run(["train", f"{file}:Line", "--out", str(out), "--resume"]) == 0
    assert "Nothing to resume" in capsys.readouterr().out
    assert run(["train", f"{file}:Line", "--out", str(out), "--resume", "--seed", "1"]) == 2
    assert "begun with seed = 0, not 1" in capsys.readouterr().err
    assert run(["report", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert Path(said["report"]).stat().st_size == said["bytes"] > 10_000


def test_json_prints_one_object_on_stdout(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", f"{file}:Line", "--out", str(tmp_path / "run"), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["status"] == "finished"
    assert outcome["step"] == 60
    assert outcome["best"]["val_loss"] <= outcome["validation"]["val_loss"] < 0.1


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("mine.py:Lin", "Did you mean 'Line'"),
        ("mne.py:Line", "Did you mean"),
        ("nowhere/mine.py:Line", "no folder"),
        ("digitz", "Did you mean 'digits'"),
        ("mine.py:Nan", "the loss of the first batch is nan; its input holds NaN"),
        ("mine.py:Vector", r"must return a scalar tensor. Got shape (8, 1). Take its mean."),
        ("mine.py:Empty", "gave no batch"),
    ],
)
def test_bad_tasks_exit_with_two(
    file: Path, task: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    assert run(["train", task, "--out", "run", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["trian", "digits"],
        ["train"],
        ["train", "digits", "--steps", "0"],
        ["train", "digits", "--resume"],
        ["train", "digits", "--size", "huge"],
        ["train", "digits", "--budget", "7", "--out", "never"],
        ["report", "nowhere"],
        ["list", "tsaks"],
    ],
)
def test_bad_arguments_exit_with_two(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert "Traceback" not in error


def test_a_failure_in_the_users_code_exits_with_one_and_keeps_the_log(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import dynaxx

    out = tmp_path / "run"
    assert run(["train", f"{file}:Late", "--out", str(out), "--quiet"]) == 1
    assert "the data server is gone" in capsys.readouterr().err
    view = dynaxx.open_run(out)
    assert len(view["loss"].steps) == 29
    assert view.attempts[-1].status == "failed"


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "tasks", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["tasks"]) >= {"digits", "diabetes", "stdlib-lm"}
    assert run(["list"]) == 0
    assert "grad_norm" in capsys.readouterr().out
