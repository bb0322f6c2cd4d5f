"""A model with everything that signals look at, and steps of it that are measured by hand."""

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dynaxx import catalog
from dynaxx.core.events import Need, StepBatch, StepTimes
from dynaxx.core.objective import Objective

NAMES = catalog.names("signals")
DEAR = [name for name in NAMES if Need.CURVATURE in catalog.get("signals", name).needs]
"""Those that run the model by themselves: they may wait, and are paid for by forwards and backwards."""
STEPS = 9
ODD = ("frozen", "unused")
"""Layers without gradients, for which some quantities do not exist."""


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        weights = torch.softmax(self.router(x), dim=-1)
        return sum(weights[..., i, None] * expert(x) for i, expert in enumerate(self.experts))


class Everything(nn.Module):
    """Something for every signal to look at: statistics in buffers, dropout, attention, experts, odd parameters."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(5)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.mixture = Mixture()
        self.dropout = nn.Dropout(0.2)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.bounded = nn.Tanh()
        self.head = nn.Linear(8, 8)

    def forward(self, x):
        x = self.norm(functional.relu(self.embed(x)) + 0.1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = functional.scaled_dot_product_attention(x, x, x, is_causal=True, dropout_p=0.1)
        x = self.dropout(self.mixture(x)) + self.frozen(x)
        return self.head(self.bounded(x))


def batches():
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(4, 5, 6, generator=generator) for _ in range(STEPS)]


def loss_fn(model, x):
    return model(x).square().mean()


def seed_all():
    torch.manual_seed(1)
    np.random.seed(2)  # noqa: NPY002
    random.seed(3)


def facts(model):
    """What a step shows when everything is known."""
    probe = batches()[0] if isinstance(model, Everything) else torch.ones(4, 700)
    return {
        "objective": Objective(model, loss_fn, [probe], mode="as is"),
        "clip": (torch.tensor(2.0), 1.0),
        "loss_scale": torch.tensor(128.0),
        "times": StepTimes(forward=0.1, total=0.3),
        "batch": StepBatch(forwards=1, samples=4, tokens=20, epoch=0.5, flops_per_sample=1e3),
    }


def taken(bench, name, model=None, make=torch.optim.Adam, steps=1):
    """A bench after some steps with random gradients."""
    seed_all()
    model = Everything() if model is None else model
    found = bench(model, make([p for p in model.parameters() if p.requires_grad], lr=0.01), name)
    for x in batches()[:steps]:
        if isinstance(model, Everything):
            (found.look(x) if found.watch else model(x)).square().mean().backward()
        else:
            for p in model.parameters():
                p.grad = torch.randn_like(p)
        found.step(**facts(model))
    return found
