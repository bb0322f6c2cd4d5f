"""`dynaxx diagnose` as a person and as a machine meet it: a sound log, a lost one, and what is no log."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from dynaxx.cli import run
from dynaxx.cli.diagnose import plain, show
from dynaxx.core.findings import Cause, Finding, Remedy
from dynaxx.detectors import Diagnosis


def log(path: Path, losses: np.ndarray) -> Path:
    rows = "\n".join(f"{step},{loss!r}" for step, loss in enumerate(losses.tolist(), start=1))
    path.write_text("step,train_loss\n" + rows + "\n")
    return path


@pytest.fixture
def lost(tmp_path: Path) -> Path:
    """Falls for 300 steps, then grows by 5 % a step until it is not finite."""
    rng = np.random.default_rng(0)
    falling = 0.5 + 2.0 * np.exp(-np.arange(300) / 60)
    rising = falling[-1] * 1.05 ** np.arange(100)
    losses = np.concatenate([falling, rising]) * np.exp(0.03 * rng.standard_normal(400))
    losses[-5:] = math.nan
    return log(tmp_path / "lost.csv", losses)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    losses = (0.5 + 2.0 * np.exp(-np.arange(400) / 120)) * np.exp(0.03 * rng.standard_normal(400))
    return log(tmp_path / "sound.csv", losses)


def test_a_lost_run_fails_on_its_findings_and_names_steps_and_causes(lost: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["diagnose", str(lost), "--fail-on", "warning"]) == 3
    said = capsys.readouterr().out
    assert "critical" in said
    assert "D5" in said  # non-finite values, and where they began
    assert "396" in said
    assert "because" in said
    assert "→" in said


def test_a_sound_run_passes(sound: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["diagnose", str(sound), "--fail-on", "warning"]) == 0
    said = capsys.readouterr().out
    assert "0 alarms" in said
    assert "could not speak" in said  # silence never passes for health


def test_machines_get_one_object(lost: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["diagnose", str(lost), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["steps"] == 400
    assert any(finding["name"] == "non_finite" for finding in told["findings"])
    assert told["causes"][0]["confidence"] > 0.3
    assert told["failed"] == {}
    assert "vanishing_gradients" in told["not_applicable"]


def test_one_detector_and_the_reasons_of_the_others(lost: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["diagnose", str(lost), "--only", "vanishing_gradients", "--all"]) == 0
    assert "vanishing_gradients: needs the column grad_norm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "no such folder"),
        (["two.csv"], "begin anew"),
        (["sound.csv", "--only", "loss_spikes"], "Did you mean 'loss_spike'"),
        (["sound.csv", "--follow", "0"], "above 0"),
    ],
)
def test_bad_input_is_one_clear_line(
    sound: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
):
    monkeypatch.chdir(sound.parent)
    Path("two.csv").write_text("step,loss\n1,1\n2,1\n1,1\n")
    assert run(["diagnose", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_three_steps_are_no_ground_for_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["diagnose", str(log(tmp_path / "short.csv", np.array([2.0, 9.0, 1.0]))), "--fail-on", "note"]) == 0
    assert "0 alarms, 0 notes" in capsys.readouterr().out


def test_symptoms_stand_beneath_their_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rate = Cause(name="learning_rate_too_high", confidence=0.62, remedies=(Remedy(text="Lower it."),))
    faded = Cause(name="vanishing_gradients", confidence=0.75, remedies=(Remedy(text="Replace sigmoids."),))
    found = tuple(
        Finding(code="D0", name=name, title=name, severity="warning", spans=((first, 400),), causes=(cause,))
        for name, first, cause in (("vanishing_gradients", 197, faded), ("update_size", 3, rate))
    )
    diagnosis = Diagnosis(findings=found, silent=(), not_applicable={}, steps=400)
    show(diagnosis, "run", everything=False)
    said = capsys.readouterr().out
    assert said.index("62%") < said.index("brings about") < said.index("Lower it.", said.index("warning"))
    assert "Replace sigmoids." not in said
    assert [cause["symptom_of"] for cause in plain(diagnosis, "run")["causes"]] == ["", "learning_rate_too_high"]
