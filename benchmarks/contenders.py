"""How each tool is put into a training loop: Dynaxx, and its peers where they are installed."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

import dynaxx
from dynaxx import catalog
from dynaxx.core.task import Task

Step = Callable[[], object]
"""Takes one optimizer step."""


class Loop:
    """One training of a task, a step at a time; two of them with the same arguments are equal bit for bit.

    Args:
        name: A built-in task.
        size: Its size.
        steps: Planned steps, for the schedule.
    """

    def __init__(self, name: str, size: str, steps: int) -> None:
        torch.manual_seed(0)
        self.task: Task = catalog.get("tasks", name)(size=size)
        self.task.steps = steps
        self.model = self.task.model()
        self.optimizer = self.task.optimizer(self.model)
        self.scheduler: Any = self.task.scheduler(self.optimizer)
        self.batches = self._endless()

    def step(self) -> torch.Tensor:
        """One step as users write it; returns the loss."""
        self.optimizer.zero_grad()
        loss = self.task.loss(self.model, next(self.batches))
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss

    def _endless(self) -> Iterator[Any]:
        for epoch in count():
            yield from self.task.batches("train", epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One row of the table.

    Args:
        name: What the row is called.
        attach: Puts the tool into a loop, given a folder for what it writes; returns the watched step.
        package: What must be installed.
        period: Steps after which its measurements repeat; a shorter run would not count them in proportion.
    """

    name: str
    attach: Callable[[Loop, Path], Step]
    package: str = "torch"
    period: int = 1

    @property
    def installed(self) -> bool:
        """Whether its package can be imported."""
        return importlib.util.find_spec(self.package) is not None


def bare(loop: Loop, folder: Path) -> Step:
    """The bare loop against itself: what the machine's noise alone looks like."""
    del folder
    return loop.step


def with_dynaxx(loop: Loop, folder: Path) -> Step:
    """`dynaxx.watch` with its defaults, and the loss of every step."""
    run = dynaxx.watch(loop.model, loop.optimizer, folder / "run", quiet=True)
    return lambda: run.log(loss=loop.step())


def with_wandb(loop: Loop, folder: Path, *, log: str | None, every: int = 1000) -> Step:
    """`wandb.watch` offline, and `wandb.log` of every step's loss; without `log` the latter alone."""
    os.environ["WANDB_SILENT"] = "true"
    import wandb

    run = wandb.init(mode="offline", dir=folder, project="overhead")
    if log is not None:
        run.watch(loop.model, log=log, log_freq=every)
    return lambda: run.log({"loss": loop.step().item()})


def with_torchmortem(loop: Loop, folder: Path) -> Step:
    """`Autopsy` with its default sampling."""
    del folder
    from torchmortem import Autopsy

    autopsy = Autopsy(loop.model, optimizer=loop.optimizer)
    autopsy.attach()
    autopsy._report_generated = True  # else it writes a report into the working directory at exit
    return lambda: autopsy.step(loss=loop.step().item())


def with_cockpit(loop: Loop, folder: Path) -> Step:
    """Cockpit's smallest preset, "economy", at every step; it needs a model and a loss that BackPACK can extend."""
    del folder
    from backpack import extend
    from cockpit import Cockpit
    from cockpit.utils.configuration import configuration

    model = extend(loop.model)
    loss_of, losses_of = extend(torch.nn.CrossEntropyLoss()), torch.nn.CrossEntropyLoss(reduction="none")
    instruments, steps = Cockpit(model.parameters(), quantities=configuration("economy")), count()

    def step() -> None:
        loop.optimizer.zero_grad()
        inputs, targets = next(loop.batches)
        outputs, number = model(inputs), next(steps)
        loss = loss_of(outputs, targets)
        info = {
            "batch_size": len(targets),
            "individual_losses": losses_of(outputs, targets),
            "loss": loss,
            "optimizer": loop.optimizer,
        }
        with instruments(number, info=info):
            loss.backward(create_graph=instruments.create_graph(number))
        loop.optimizer.step()
        loop.scheduler.step()

    return step


DYNAXX = Contender(name="dynaxx.watch", attach=with_dynaxx, package="dynaxx", period=512)
PEERS = (
    Contender(name="nothing, twice", attach=bare),
    Contender(name="wandb.log alone", attach=partial(with_wandb, log=None), package="wandb"),
    *(
        Contender(
            name=f"wandb.watch {log} /{every}",
            attach=partial(with_wandb, log=log, every=every),
            package="wandb",
            period=every,
        )
        for log in ("gradients", "all")
        for every in (1000, 100)
    ),
    Contender(name="torchmortem Autopsy", attach=with_torchmortem, package="torchmortem"),
    Contender(name="cockpit economy", attach=with_cockpit, package="cockpit"),
)
