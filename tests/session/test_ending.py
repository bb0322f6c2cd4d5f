"""A run that has converged: the last stretch at a lower rate, the stop, the blend of what was saved."""

import json

import pytest
import torch
from torch import nn

from dynaxx import open_run
from dynaxx.core.task import Task
from dynaxx.session.ending import BLENDED
from dynaxx.session.navigator import Navigator
from dynaxx.session.train import train


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Steps of a millisecond would leave one look in thousands of them."""
    monkeypatch.setattr(Navigator, "settle", lambda self, step_seconds, share: 20)


class Floor(Task):
    """A line through noisy points at a constant rate: the loss comes to rest on the noise of the targets."""

    steps = 800
    batch_size = 32
    threads = 1
    falls = 0.0

    def model(self):
        return nn.Linear(8, 1)

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.05)

    def batches(self, split, seed):
        draw = torch.Generator().manual_seed(seed if split == "train" else 7)
        rows = 2048 if split == "train" else 512
        inputs = torch.randn(rows, 8, generator=draw) * torch.logspace(0, -self.falls, 8)
        targets = (inputs / torch.logspace(0, -self.falls, 8)).sum(1, keepdim=True)
        targets = targets + 0.5 * torch.randn(rows, 1, generator=draw)
        return [(inputs[i : i + 32], targets[i : i + 32]) for i in range(0, rows, 32)]

    def loss(self, model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    def samples(self, model):
        return model(torch.eye(8)).detach()


class Falling(Floor):
    """Curvatures four decades apart: the loss falls as long as it is trained."""

    falls = 2.0


@pytest.mark.slow
def test_a_run_that_rests_is_annealed_stopped_and_blended(tmp_path):
    outcome = train(Floor(), tmp_path / "run", name="floor", navigate="act", checkpoints=None, quiet=True)
    assert outcome.status == "stopped"
    assert outcome.step <= 0.6 * outcome.steps
    assert "saved" in outcome.why
    view = open_run(tmp_path / "run")
    decisions = [e["proposal"]["action"]["name"] for e in view.events("decision") if e["status"] == "taken"]
    assert decisions == ["learning_rate", "stop"]
    [told] = view.events("blend")
    assert {key: told[key] for key in outcome.blend} == outcome.blend
    assert outcome.blend["parts"] >= 2
    assert outcome.blend["verdict"] in ("better", "not established")
    assert (tmp_path / "run" / BLENDED).exists()
    chart = json.loads((tmp_path / "run" / "charts" / f"{outcome.step:010d}-blend.json").read_text())
    assert chart["probe"] == "blend"
    whole = train(Floor(), tmp_path / "whole", name="floor", navigate="off", checkpoints=1, quiet=True)
    assert outcome.best["val_loss"] <= 1.01 * whole.best["val_loss"]


@pytest.mark.slow
def test_a_run_that_falls_is_left_alone(tmp_path):
    outcome = train(Falling(), tmp_path / "run", name="falling", navigate="act", checkpoints=None, quiet=True)
    assert outcome.status == "finished"
    assert outcome.blend is None


@pytest.mark.slow
def test_advice_changes_nothing(tmp_path):
    outcome = train(Floor(), tmp_path / "run", name="floor", navigate="advise", checkpoints=1, quiet=True)
    assert outcome.status == "finished"
    said = [e for e in open_run(tmp_path / "run").events("decision") if e["proposal"]["controller"] == "converge"]
    assert {e["status"] for e in said} == {"advised"}
    assert [e["proposal"]["action"]["name"] for e in said] == ["advice", "learning_rate", "stop"]
