"""The contenders of `methods.py`: tuned peers and our hybrids, and one training of any of them."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from dynaxx import catalog
from dynaxx.averaging import recompute_batch_norm
from dynaxx.core.isolation import isolated_random
from dynaxx.core.loop import epoch_seed, evaluate, train_steps, validation_seed
from dynaxx.core.task import Task, derive_seed
from dynaxx.errors import NotApplicable
from dynaxx.optim import Joint
from dynaxx.phases.phase import read_phases
from dynaxx.schedules import as_scheduler
from dynaxx.schedules.constant import Constant
from dynaxx.schedules.linear_decay import LinearDecay
from dynaxx.session.recipe import Method, Recipe

WARMUP = 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What tuning chooses.

    Args:
        rate: The peak learning rate.
        decay: Weight decay.
        momentum: Of the hidden matrices' momentum; None: the contender's own.
    """

    rate: float
    decay: float
    momentum: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A method.

    Args:
        rate: The peak learning rate that its tuning begins at.
        make: What makes the optimizer of a peer, of model and setting.
        words: Else a recipe of ours, as on the command line, of a setting.
        peer: Whether it is of another package.
        momentum: The momentum that its tuning begins at; None: not tuned.
        only: The task that it is for; empty: any.
    """

    rate: float
    make: Callable[[nn.Module, Setting], Any] | None = None
    words: Callable[[Setting], dict[str, str]] | None = None
    peer: bool = False
    momentum: float | None = None
    only: str = ""


def groups(parameters: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Decay on matrices only, for every peer alike."""
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, at: Setting) -> torch.optim.Optimizer:
    """torch's, with the momenta that language models are trained with."""
    return torch.optim.AdamW(groups(list(model.parameters()), at.decay), lr=at.rate, betas=(0.9, 0.99), fused=True)


def torch_muon(model: nn.Module, at: Setting) -> Joint:
    """torch.optim.Muon on hidden matrices at AdamW's scale, AdamW at the same rate on embeddings, head and vectors."""
    named = list(model.named_parameters())
    # The last matrix is the head of every one of the tasks, biases behind it or not.
    last = [n for n, p in named if p.dim() == 2][-1]
    hidden = [p for n, p in named if p.dim() == 2 and n != last and "embed" not in n]
    if not hidden:
        raise NotApplicable("torch.optim.Muon takes matrices only, and every hidden layer is a convolution")
    chosen = {id(p) for p in hidden}
    rest = groups([p for _, p in named if id(p) not in chosen], at.decay)
    momentum = 0.95 if at.momentum is None else at.momentum  # its default
    return Joint(
        torch.optim.Muon(
            hidden, lr=at.rate, weight_decay=at.decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=at.rate, betas=(0.9, 0.99), fused=True),
    )  # fmt: skip


def peer_soap(model: nn.Module, at: Setting) -> torch.optim.Optimizer:
    """pytorch_optimizer's SOAP at its defaults: refreshed every 10 steps."""
    from pytorch_optimizer import SOAP

    return SOAP(groups(list(model.parameters()), at.decay), lr=at.rate, precondition_frequency=10)


def schedule_free(model: nn.Module, at: Setting, steps: int) -> torch.optim.Optimizer:
    """pytorch_optimizer's schedule-free AdamW; evaluated at its average."""
    from pytorch_optimizer import ScheduleFreeAdamW

    warmup = max(1, round(WARMUP * steps))
    return ScheduleFreeAdamW(
        groups(list(model.parameters()), at.decay), lr=at.rate, weight_decay=at.decay, warmup_steps=warmup
    )  # fmt: skip


def muon(at: Setting, momentum: float, more: str = "") -> str:
    """Ours, in words; decay and rate are one for all groups, as of the peers."""
    return f"muon:lr={at.rate!r},weight_decay={at.decay!r},betas=(0.9,0.99),momentum={momentum!r}{more}"


HEADS = ",stacked={'*.project':9}"
"""Queries, keys and values of three heads of stdlib-lm, each a matrix of its own, as `Muon.for_model` finds them."""
TOGETHER = ",stacked={}"
"""One matrix, as torch's Muon takes them."""


def muon_phases(at: Setting, more: str = TOGETHER) -> dict[str, str]:
    """Muon whose gradients are averaged over two thirds of 1 / (1 − μ) steps, then over as many, then over twice."""
    assert at.momentum is not None
    quick, middle, settle = (
        f"optimizer={muon(at, round(1 - part * (1 - at.momentum), 4), more)}" for part in (1.5, 1.0, 0.5)
    )
    return {"phases": f"quick until=0.2 {quick}; middle until=0.45 {middle}; settle {settle}"}


def muon_heads(at: Setting) -> dict[str, str]:
    """One momentum throughout, each head by itself."""
    assert at.momentum is not None
    return {"optimizer": muon(at, at.momentum, HEADS)}


CONTENDERS: dict[str, Contender] = {
    "adamw": Contender(rate=5e-3, peer=True, make=adamw),
    "torch_muon": Contender(rate=1e-2, peer=True, make=torch_muon),
    "torch_muon_tuned": Contender(rate=1e-2, peer=True, make=torch_muon, momentum=0.8),
    "muon_phases": Contender(rate=1e-2, words=muon_phases, momentum=0.8),
    "muon_heads": Contender(rate=1e-2, words=muon_heads, momentum=0.8, only="stdlib-lm"),
    "muon_heads_phases": Contender(rate=1e-2, words=lambda at: muon_phases(at, HEADS), momentum=0.8, only="stdlib-lm"),
    "peer_soap": Contender(rate=6e-3, peer=True, make=peer_soap),
    "schedule_free": Contender(rate=1e-2, peer=True),
}
"""torch_muon has its default momentum, torch_muon_tuned one that fits so short a training. By the same protocol
muon_phases shows what phases of the momentum add to that, muon_heads what taking heads apart does, muon_heads_phases
both."""


class Endless:
    """A task's training batches, epoch after epoch.

    Args:
        task: Whose.
        seed: The run's.
    """

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed = task, seed

    def __iter__(self) -> Iterator[Any]:
        epoch = 0
        while True:
            yield from self.task.batches("train", epoch_seed(self.seed, epoch))
            epoch += 1


def recipe(words: dict[str, str]) -> Recipe:
    """Ours, from words."""
    phases = read_phases(words["phases"]) if "phases" in words else ()
    rest = {key: text for key, text in words.items() if key != "phases"}
    return Recipe(**rest, phases=phases)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A training that goes on step by step.

    Args:
        task: The task.
        model: Its model.
        optimizer: The contender's.
        scheduler: Of the rate.
        seed: Of the order of the batches.
        method: All of ours, its averager among it; None: a peer.
        free: Whether the optimizer averages by itself, and is told when.
    """

    task: Task
    model: nn.Module
    optimizer: Any
    scheduler: Any
    seed: int
    method: Method | None
    free: bool

    def losses(self, steps: int) -> Iterator[torch.Tensor]:
        """The training losses, one a step."""
        torch.manual_seed(derive_seed(self.seed, "global"))
        self.model.train()
        for loss in train_steps(self.task, self.model, self.optimizer, islice(Endless(self.task, self.seed), steps)):
            self.scheduler.step()
            yield loss

    def final(self) -> float:
        """Validation loss, of the averaged model where there is one."""
        if self.free:
            self.optimizer.eval()
        averager = None if self.method is None else self.method.averager
        averaged = averager is not None and averager.ready
        with averager.swapped() if averager is not None and averaged else nullcontext():
            if averaged or self.free:
                recompute_batch_norm(self.model, islice(Endless(self.task, self.seed), 16), self.task.loss)
            batches = self.task.batches("validation", validation_seed(self.seed))
            return evaluate(self.task, self.model, batches)["loss"]


def course(name: str, who: str, at: Setting, steps: int, seed: int) -> Course:
    """A contender before its first step."""
    contender, task = CONTENDERS[who], catalog.task(name, None)
    if contender.only not in ("", name):
        raise NotApplicable(f"it is for {contender.only}")
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    task.steps = steps
    with isolated_random():
        torch.manual_seed(derive_seed(seed, "global"))
        model = task.model()
    free = who == "schedule_free"
    curve: Any = Constant(steps=steps) if free else LinearDecay(steps=steps, warmup=WARMUP)
    method = None
    if contender.words is not None:
        method = recipe(contender.words(at)).method(task, model, steps)
        optimizer: Any = method.optimizer
        if method.own_averager is not None:
            method.own_averager.attach(optimizer)
    elif free:
        optimizer = schedule_free(model, at, steps)
        optimizer.train()
    else:
        assert contender.make is not None
        optimizer = contender.make(model, at)
    scheduler = as_scheduler(optimizer, curve)
    return Course(task=task, model=model, optimizer=optimizer, scheduler=scheduler, seed=seed, method=method, free=free)


def trained(name: str, who: str, at: Setting, steps: int, seed: int) -> dict[str, float]:
    """One training: its final validation loss, and what it took."""
    made = course(name, who, at, steps, seed)
    began = time.process_time()
    for loss in made.losses(steps):
        if not math.isfinite(loss.item()):
            return {"loss": math.inf, "seconds": time.process_time() - began}
    seconds = time.process_time() - began
    final = made.final()
    return {"loss": final if math.isfinite(final) else math.inf, "seconds": seconds}
