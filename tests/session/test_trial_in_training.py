"""A branch trial in a whole training: two close causes, a rate that is too high against a batch that is too small."""

import pytest
import torch
from torch import nn

from dynaxx import open_run
from dynaxx.core.findings import Cause, Detector, Finding, Remedy
from dynaxx.core.records import Action
from dynaxx.core.task import Task
from dynaxx.session.diagnosing import Diagnosing
from dynaxx.session.navigator import Navigator
from dynaxx.session.train import train
from dynaxx.session.trial import HELD

STEPS = 400


class Noisy(Task):
    """A line through noisy points in batches of four, at a rate that keeps the weights far above the noise's floor."""

    steps = STEPS
    batch_size = 4
    threads = 1

    def model(self):
        return nn.Linear(16, 1)

    updates = 0

    def optimizer(self, model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.13)
        optimizer.register_step_post_hook(self.count)
        return optimizer

    def count(self, *_):
        self.updates += 1

    def batches(self, split, seed):
        draw = torch.Generator().manual_seed(seed if split == "train" else 7)
        inputs = torch.randn(2048, 16, generator=draw)
        targets = inputs.sum(1, keepdim=True) + torch.randn(2048, 1, generator=draw)
        return [(inputs[i : i + 4], targets[i : i + 4]) for i in range(0, 2048, 4)]

    def loss(self, model, batch):
        return (model(batch[0]) - batch[1]).square().mean()


class Torn(Detector):
    """Two causes of one alarm that the log does not part, with different remedies."""

    code = "X1"
    title = "torn"
    reads = ("loss",)

    def detect(self, run):
        step = int(run.steps[-1])
        if step < 100:
            return None
        lower = Action(name="learning_rate", arguments={"factor": 0.2}, reason="lower")
        more = Action(name="accumulate", arguments={"batches": 2, "rate": 2.0}, reason="more")
        causes = (
            Cause(name="learning_rate_too_high", confidence=0.45, remedies=(Remedy(text="lower", action=lower),)),
            Cause(name="batch_too_small", confidence=0.4, remedies=(Remedy(text="more", action=more),)),
        )
        return Finding(code="X1", name="torn", title="torn", severity="warning", spans=((100, step),), causes=causes)


@pytest.mark.slow
def test_the_trial_parts_two_close_causes_and_the_run_goes_on_with_the_winner(tmp_path, monkeypatch):
    monkeypatch.setattr(Diagnosing, "_loaded", lambda self: {"torn": Torn()})
    monkeypatch.setattr(Navigator, "settle", lambda self, step_seconds, share: 20)
    task = Noisy()
    outcome = train(task, tmp_path / "run", name="noisy", navigate="act", checkpoints=1, quiet=True)
    assert outcome.status == "finished"
    view = open_run(tmp_path / "run")
    [trial] = view.events("trial")
    assert trial["step"] == 100
    assert list(trial["arms"]) == ["do nothing", "learning_rate_too_high", "batch_too_small"]
    assert trial["winner"] == "learning_rate_too_high"
    arms = trial["arms"]
    assert arms["learning_rate_too_high"]["p"] <= 0.025  # 5 % over two arms
    # Rate over batch sets the noise, and here the rate rises with the batch: no better than doing nothing.
    assert arms["batch_too_small"]["p"] > 0.025
    assert trial["spent"] == pytest.approx(3 * (trial["steps"] + HELD / 3))
    assert trial["spent"] <= 0.2 * STEPS
    arms_updates = 2 * trial["steps"] + -(-trial["steps"] // 2)  # the third takes two batches to an update
    assert task.updates == STEPS + arms_updates
    begun = [e["receipt"]["action"] for e in view.events("receipt") if e["receipt"]["status"] == "begun"]
    assert ("learning_rate", {"factor": 0.2}) in [(action["name"], action["arguments"]) for action in begun]
    assert list(view["loss"].steps) == list(range(1, STEPS + 1))  # the trial's steps are no steps of the run
    untouched = train(Noisy(), tmp_path / "untouched", name="noisy", navigate="off", checkpoints=1, quiet=True)
    assert outcome.validation["val_loss"] < 0.7 * untouched.validation["val_loss"]
