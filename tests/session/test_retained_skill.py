"""What a training forgets of an earlier task: its validation beside the new one's, and EWC by words against it."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from dynaxx import open_run
from dynaxx.core.task import Task
from dynaxx.perturb import Ewc
from dynaxx.session.recipe import Recipe
from dynaxx.session.train import train


class Second(Task):
    """Learned first: y = x₀, of inputs in which x₁ is 0. Now: y = x₀ + x₁ less 1, of inputs in which x₀ = x₁."""

    steps, batch_size, retained = 60, 16, ("first",)

    def model(self):
        model = nn.Linear(2, 1)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0, 0.0]]))
            model.bias.zero_()
        return model

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def batches(self, split, seed):
        x = torch.randn(64, 1, generator=torch.Generator().manual_seed(0 if split != "train" else seed))
        if split == "first":
            return [(torch.cat([x, torch.zeros_like(x)], 1), x)]
        return [(torch.cat([b, b], 1), 2 * b) for b in x.split(self.batch_size)]

    def loss(self, model, batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1])


def test_an_earlier_split_is_evaluated_and_ewc_keeps_it(tmp_path: Path):
    """w₀ + w₁ = 2 solves the new task; w₀ = 1 the old one, on which the Fisher information of w₁ is 0."""
    task = Second()
    model = task.model()
    Ewc.of(model, task.batches("first", 0), likelihood="gaussian").save(tmp_path / "old.safetensors")
    words = f"ewc:old='{tmp_path / 'old.safetensors'}',strength=100.0"
    free = train(Second(), tmp_path / "free", name="free", quiet=True)
    kept = train(Second(), tmp_path / "kept", name="kept", quiet=True, recipe=Recipe(perturb=words))
    assert free.validation["val_loss"] < 1e-3
    assert kept.validation["val_loss"] < 0.02
    # Without a pull both weights go to (1.5, 0.5): the loss on the old task is 0.25 E x².
    assert 0.1 < free.validation["first_loss"] < 0.5
    assert kept.validation["first_loss"] < 0.01 * free.validation["first_loss"]
    logged = np.asarray(open_run(tmp_path / "kept")["first_loss"], dtype=float)
    assert logged[np.isfinite(logged)][-1] == kept.validation["first_loss"]
