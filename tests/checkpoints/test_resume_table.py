"""The oracle of resuming: after a restore into fresh objects the training goes on as if it had not been interrupted."""

# ruff: noqa: NPY002  (the legacy stream is one of those that must come back)

import itertools
import json
import random

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler as lrs
from torch.optim.swa_utils import SWALR

from dynaxx.checkpoints import CheckpointStore, capture, decode, encode, restore

LR = 0.01
OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, lr=LR),
    "SGD momentum": lambda p: optim.SGD(p, lr=LR, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda p: optim.Adam(p, lr=LR, amsgrad=True),
    "AdamW": lambda p: optim.AdamW(p, lr=LR),
    "AdamW fused": lambda p: optim.AdamW(p, lr=LR, fused=True),
    "AdamW loop": lambda p: optim.AdamW(p, lr=LR, foreach=False),
    "AdamW tensor rate": lambda p: optim.AdamW(p, lr=torch.tensor(LR), betas=(0.8, 0.9)),
    "RMSprop": lambda p: optim.RMSprop(p, lr=LR, centered=True, momentum=0.5),
    "Adagrad": lambda p: optim.Adagrad(p, lr=LR, lr_decay=0.01),
    "Adadelta": lambda p: optim.Adadelta(p, lr=LR),
    "Adamax": lambda p: optim.Adamax(p, lr=LR),
    "NAdam": lambda p: optim.NAdam(p, lr=LR),
    "RAdam": lambda p: optim.RAdam(p, lr=LR),
    "ASGD": lambda p: optim.ASGD(p, lr=LR, t0=5),
    "Rprop": lambda p: optim.Rprop(p, lr=LR),
    "Adafactor": lambda p: optim.Adafactor(p, lr=LR),
    "Muon": lambda p: optim.Muon(p, lr=LR),
    "LBFGS": lambda p: optim.LBFGS(p, lr=LR, max_iter=3, history_size=4, line_search_fn="strong_wolfe"),
    "SparseAdam": lambda p: optim.SparseAdam(p, lr=LR),
}


class Warmup:
    """A schedule that carries state, as LambdaLR allows."""

    def __init__(self):
        self.calls = 0

    def __call__(self, step):
        self.calls += 1
        return 1.0 / (1 + self.calls)


SCHEDULERS = {
    "none": lambda o: None,
    "ConstantLR": lambda o: lrs.ConstantLR(o, total_iters=10),
    "LinearLR": lambda o: lrs.LinearLR(o, total_iters=15),
    "ExponentialLR": lambda o: lrs.ExponentialLR(o, 0.9),
    "StepLR": lambda o: lrs.StepLR(o, 3),
    "MultiStepLR": lambda o: lrs.MultiStepLR(o, [2, 9, 9, 12]),
    "PolynomialLR": lambda o: lrs.PolynomialLR(o, 40, power=2.0),
    "CosineAnnealingLR": lambda o: lrs.CosineAnnealingLR(o, 20),
    "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 4, 2),
    "CyclicLR": lambda o: lrs.CyclicLR(o, LR, 0.05, step_size_up=4, cycle_momentum=False, mode="triangular2"),
    "CyclicLR scaled": lambda o: lrs.CyclicLR(
        o, LR, 0.05, step_size_up=4, cycle_momentum=False, scale_fn=lambda x: 0.9**x
    ),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, 0.05, total_steps=40, cycle_momentum="betas" in o.defaults),
    "LambdaLR": lambda o: lrs.LambdaLR(o, lambda step: 0.95**step),
    "LambdaLR object": lambda o: lrs.LambdaLR(o, Warmup()),
    "MultiplicativeLR": lambda o: lrs.MultiplicativeLR(o, lambda step: 0.97),
    "ReduceLROnPlateau": lambda o: lrs.ReduceLROnPlateau(o, patience=1, cooldown=1),
    "SequentialLR": lambda o: lrs.SequentialLR(
        o, [lrs.LinearLR(o, total_iters=5), lrs.CosineAnnealingLR(o, 10), lrs.StepLR(o, 2)], [5, 12]
    ),
    "ChainedScheduler": lambda o: lrs.ChainedScheduler([lrs.LinearLR(o, total_iters=10), lrs.ExponentialLR(o, 0.9)]),
    "SWALR": lambda o: SWALR(o, swa_lr=0.002, anneal_epochs=15),
}


class Training:
    """A training that uses every global random stream and whatever state its optimizer and scheduler have."""

    def __init__(self, optimizer, scheduler):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        sparse = optimizer == "SparseAdam"
        self.model = nn.Sequential(
            nn.Embedding(12, 6, sparse=sparse), nn.Dropout(0.2), *([] if sparse else [nn.Linear(6, 3, bias=False)])
        )
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)

    def step(self):
        tokens = torch.tensor([random.randrange(12), np.random.randint(12), *torch.randint(12, (6,)).tolist()])

        def closure():
            self.optimizer.zero_grad()
            loss = (self.model(tokens) - 1).square().mean()
            loss.backward()
            return loss

        loss = self.optimizer.step(closure).item()
        if isinstance(self.scheduler, lrs.ReduceLROnPlateau):
            self.scheduler.step(loss)
        elif self.scheduler is not None:
            self.scheduler.step()
        return loss

    def capture(self):
        return capture(self.model, self.optimizer, scheduler=self.scheduler)

    def restore(self, state):
        return restore(state, self.model, self.optimizer, scheduler=self.scheduler)


def through_memory(state):
    tensors, tree = encode(state)
    return decode({name: t.clone() for name, t in tensors.items()}, json.loads(json.dumps(tree)))


def check(optimizer, scheduler, through, identical):
    first = Training(optimizer, scheduler)
    for _ in range(7):
        first.step()
    state = through(first.capture())
    losses = [first.step() for _ in range(20)]
    assert len(set(losses)) > 10

    second = Training(optimizer, scheduler)
    second.step()  # whatever a fresh one has is replaced
    torch.rand(3)
    level, reasons = second.restore(state)
    assert (level, reasons) == ("exact", ())
    assert identical(through_memory(second.capture()), state)
    assert [second.step() for _ in range(20)] == losses
    assert identical(through_memory(second.capture()), through_memory(first.capture()))


PAIRS = {
    *((o, "OneCycleLR") for o in OPTIMIZERS),
    *((o, s) for o in ("AdamW", "SGD momentum", "AdamW tensor rate") for s in SCHEDULERS),
}


@pytest.mark.parametrize(("optimizer", "scheduler"), sorted(PAIRS))
def test_resume_from_disk(tmp_path, optimizer, scheduler, identical):
    store = CheckpointStore(tmp_path)

    def through(state):
        store.save(7, state)
        return store.load()[0]

    check(optimizer, scheduler, through, identical)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "scheduler"), sorted(set(itertools.product(OPTIMIZERS, SCHEDULERS)) - PAIRS))
def test_resume_every_pair(optimizer, scheduler, identical):
    check(optimizer, scheduler, through_memory, identical)
