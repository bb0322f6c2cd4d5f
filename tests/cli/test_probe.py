"""`dynaxx probe`: a task, a run, a checkpoint; its figure in the report; bad input in one line."""

import json
from pathlib import Path

import pytest

from dynaxx.catalog import names
from dynaxx.cli import run
from dynaxx.landscape._point import point

TASK = '''
import torch
from torch import nn
import dynaxx

class Small(dynaxx.Task):
    """Two classes."""
    steps, batch_size, threads = 40, 16, 1
    def model(self): return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    def optimizer(self, model): return torch.optim.SGD(model.parameters(), lr=0.1)
    def batches(self, split, seed):
        x = torch.randn(64, 3, generator=torch.Generator().manual_seed(seed % 1000))
        return [(b, (b.sum(1) > 0).long()) for b in x.split(self.batch_size)]
    def loss(self, model, batch): return nn.functional.cross_entropy(model(batch[0]), batch[1])

class Broken(Small):
    """Its weights are not finite."""
    def model(self):
        net = super().model()
        net[2].weight.data.fill_(float("nan"))
        return net
'''


@pytest.fixture
def task(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(TASK)
    return f"{path}:Small"


def test_lists_its_probes_with_one_line_each(capsys):
    assert run(["probe", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in names("probes"))


def test_options_are_those_of_the_probe(capsys):
    assert run(["probe", "spectrum", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--probes" in out
    assert "--examples" in out


@pytest.mark.parametrize("name", names("probes"))
def test_every_probe_is_a_command_with_options(name, capsys):
    assert run(["probe", name, "--help"]) == 0
    assert "--microbatch" in capsys.readouterr().out


def test_probes_a_task(task, capsys, tmp_path):
    figure = tmp_path / "spectrum.png"
    code = run(["probe", "spectrum", task, "--examples", "32", "--probes", "2", "--steps", "8", "-o", str(figure)])
    assert code == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "cost:" in out
    assert figure.stat().st_size > 5000
    assert run(["probe", "spectrum", task, "--probes", "2", "--steps", "8", "--json"]) == 0
    chart = json.loads(capsys.readouterr().out)
    assert chart["probe"] == "spectrum"


def test_probes_a_run_and_its_report_shows_it(task, capsys, tmp_path):
    folder = tmp_path / "run"
    assert run(["train", task, "--out", str(folder), "--quiet"]) == 0
    assert run(["probe", "spectrum", str(folder), "--probes", "2", "--steps", "8", "--quiet"]) == 0
    kept = sorted((folder / "charts").iterdir())
    assert [path.name for path in kept] == ["0000000040-spectrum.json"]
    checkpoint = next(p for p in sorted((folder / "checkpoints").iterdir()) if p.name.startswith("00000000"))
    assert run(["probe", "spectrum", str(checkpoint), "--probes", "2", "--steps", "8", "--quiet"]) == 0
    assert len(list((folder / "charts").iterdir())) == 2
    assert run(["report", str(folder)]) == 0
    assert "Probes of the landscape" in (folder / "report.html").read_text()


def test_a_run_is_probed_at_its_own_weights(task, tmp_path):
    folder = tmp_path / "run"
    assert run(["train", task, "--out", str(folder), "--quiet"]) == 0
    trained, fresh = point(str(folder)), point(task)
    assert trained.step == 40
    assert trained.objective.value() < fresh.objective.value() - 0.05


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["spectrum", "nowhere"], "nowhere"),
        (["spektrum", "TASK"], "spectrum"),
        (["spectrum", "TASK", "--parameters", "0.weigth"], "0.weigth"),
        (["spectrum", "TASK", "--eigenvalues", "99"], "parameters"),
        (["spectrum", "TASK", "--examples", "0"], "at least 1"),
        (["spectrum", "TASK", "--step", "3"], "fresh"),
        (["spectrum", "TASK", "-o", "x.bmp"], ".png"),
        (["spectrum", "BROKEN"], "2.weight"),
        (["spectrum", "FOLDER"], "run.json"),
    ],
)
def test_bad_input_is_one_clear_line(task, tmp_path, capsys, arguments, words):
    named = {"TASK": task, "BROKEN": task.replace("Small", "Broken"), "FOLDER": str(tmp_path)}
    assert run(["probe", *(named.get(a, a) for a in arguments)]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err
