"""kill -9 at random instants of `dynaxx train digits`: resumed, it ends with the same bits as without."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import dynaxx
from dynaxx.checkpoints import CheckpointStore

STEPS = 120


def start(folder: Path, *extra: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dynaxx", "train", "digits", "--steps", str(STEPS), "--quiet", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--out", str(folder), *extra], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )


def final(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
    state, info = CheckpointStore(folder / "checkpoints").load()
    assert info.step == STEPS
    view = dynaxx.open_run(folder)
    assert not view.problems
    series = {}
    for name in ("loss", "val_loss", "grad_norm", "lr"):
        column = view[name]
        series[f"{name} steps"], series[name] = np.asarray(column.steps), np.asarray(column)
    return state["model"], series


def compare(folder: Path, truth: tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]) -> None:
    weights, series = final(folder)

    def same(a: object, b: object) -> bool:
        if isinstance(a, dict):
            assert isinstance(b, dict)
            return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    assert same(weights, truth[0])
    for name, values in truth[1].items():
        np.testing.assert_array_equal(series[name], values, err_msg=name)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("truth") / "run"
    began = time.monotonic()
    process = start(folder)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    return final(folder), time.monotonic() - began


def kill_and_resume(kills: int, tmp_path: Path, truth, seconds: float, seed: int) -> None:
    chance = random.Random(seed)
    done = 0
    chain = 0
    while done < kills:
        chain += 1
        folder = tmp_path / f"chain{chain}"
        while True:
            # Half of the kills fall anywhere from the start of the interpreter on, half into the training itself.
            process = start(folder, "--resume")
            delay = chance.uniform(0.0, seconds) if chance.random() < 0.5 else chance.uniform(0.6, 1.0) * seconds
            try:
                _, errors = process.communicate(timeout=delay if done < kills else 300)
                assert process.returncode == 0, errors.decode()
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                done += 1
        compare(folder, truth)


def test_five_kills(uninterrupted, tmp_path: Path) -> None:
    truth, seconds = uninterrupted
    kill_and_resume(5, tmp_path, truth, seconds, seed=1)


@pytest.mark.slow
def test_a_hundred_kills(uninterrupted, tmp_path: Path) -> None:
    truth, seconds = uninterrupted
    kill_and_resume(100, tmp_path, truth, seconds, seed=2)


def test_sigterm_saves_and_exits_with_four(uninterrupted, tmp_path: Path) -> None:
    truth, seconds = uninterrupted
    folder = tmp_path / "run"
    process = start(folder)
    while not any((folder / "checkpoints").glob("0*")) and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate(timeout=60 + 10 * seconds)
    assert process.returncode == 4, errors.decode()
    process = start(folder, "--resume")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    compare(folder, truth)
