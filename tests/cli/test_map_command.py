"""`dynaxx map`: from a user's file to a plan and a page, and clear words where it cannot be."""

import json
from pathlib import Path

import pytest

from dynaxx.cli import run
from dynaxx.survey.plan import Plan

TASKS = Path(__file__).parents[1] / "survey" / "fleet_tasks.py"


def test_from_a_users_file_to_a_plan_that_trains(tmp_path: Path, capsys):
    task = f"{TASKS}:Noisy"
    out = tmp_path / "map"
    assert run(["map", task, "--steps", "400", "--workers", "1", "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert Path(said["report"]).stat().st_size > 10_000
    plan = Plan.read(said["plan"])
    assert plan.task.steps == 400
    assert said["terrain"] is None or said["terrain"] in plan.evidence["terrain"]
    assert run(["train", task, "--plan", said["plan"], "--steps", "20", "--out", str(tmp_path / "run"), "--quiet"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["map", "digit"], "digits"),
        (["map", "digits", "--budget", "0"], "share above 0"),
        (["map", "digits", "--budget", "some"], "Write 10% or 0.1"),
        (["map", "digits", "--memory", "-1"], "memory"),
        (["map", "digits", "--passes", "0.5"], "at least 1 pass"),
        (["map", "digits", "--size", "huge"], "tiny, small, medium"),
        (["map", "digits", "--workers", "2", "--slurm"], "Give one"),
    ],
)
def test_clear_words(tmp_path: Path, monkeypatch, capsys, words: list[str], said: str):
    monkeypatch.chdir(tmp_path)
    assert run(words) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("maps/*/plan.toml"))


def test_methods_are_listed_with_their_price(capsys):
    assert run(["list", "perturb"]) == 0
    said = capsys.readouterr().out
    assert "2 passes a step" in next(line for line in said.splitlines() if line.strip().startswith("sam "))
    assert run(["list", "optim", "--json"]) == 0
    assert "keeps 2 × parameters" in json.loads(capsys.readouterr().out)["optim"]["adamw"]
