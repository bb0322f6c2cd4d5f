"""Trains one case of the suite in a run folder of its own: the user's loop, as short as it can be."""

import json
import random
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dynaxx import catalog
from dynaxx.core.loop import epoch_seed, evaluate, train_steps, validation_seed
from dynaxx.core.task import Task, derive_seed
from dynaxx.errors import BadInput, DynaxxWarning, NotApplicable, UnknownName
from dynaxx.rescue.altered import Altered
from dynaxx.rescue.faults import ALTERATIONS, plant
from dynaxx.rescue.nets import NETS, small_task
from dynaxx.rescue.policies import Policy, policy
from dynaxx.session import Run, watch

BUDGET = 0.3
"""Share of the step time that measuring may take. These nets' steps take a few milliseconds, most of it Python: the 2 %
that suit a real training would leave the dearer columns with three rows."""
EVALUATIONS = 20
SAVES = 10
RESULT = "rescue.json"
"""What became of a case, in its folder; written last, so that a folder without it is trained anew."""
Status = Literal["finished", "stopped", "refused", "failed", "not applicable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What determines a run of the suite.

    Args:
        net: One of the suite's nets, or a task ("digits", "file.py:Class").
        seed: Draws the task's parameters, the alteration's, the initialisation and the order of the data.
        alteration: What is planted; None: nothing.
        policy: Who acts.
        steps: Optimizer steps; None: the task's own.
        order: 0: the seed's own order of the data; others: another one. The order alone moves the end of a small
            net, so that a repair is judged on several, each beside the clean twin on the same one.
    """

    net: str
    seed: int
    alteration: str | None = None
    policy: str = "nothing"
    steps: int | None = None
    order: int = 0

    @property
    def kind(self) -> str:
        """Healthy, fault or incident."""
        return "healthy" if self.alteration is None else ALTERATIONS[self.alteration].kind

    @property
    def name(self) -> str:
        """What is planted, in a word."""
        return self.alteration or "clean"

    @property
    def key(self) -> str:
        """The name of its folder below the suite's: kind/name-net-seed, and who acted."""
        net = Path(self.net.partition(":")[0]).stem + self.net.rpartition(":")[2] if ":" in self.net else self.net
        acted = "" if self.policy == "nothing" else f"-{self.policy}"
        acted += f"-order{self.order}" if self.order else ""
        return f"{'faulty' if self.kind == 'fault' else self.kind}/{self.name}-{net}-{self.seed}{acted}"

    @property
    def data_seed(self) -> int:
        """The seed of the order of the training data."""
        return derive_seed(self.seed, "order", self.order) if self.order else self.seed

    def task(self) -> Altered:
        """The task to train. Raises `NotApplicable` where it has no place for the alteration."""
        task = base_task(self.net, self.seed)
        task.steps = self.steps or task.steps
        alteration = None if self.alteration is None else plant(self.alteration, self.seed)
        return Altered(task, alteration, seed=self.data_seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What became of a case.

    Args:
        case: The case.
        folder: Its run folder.
        status: "finished", "stopped" (by an act), "refused" (Dynaxx would not begin), "failed" (the task raised an
            error under what was planted) or "not applicable".
        why: The reason of the last four.
        steps: Planned steps.
        step: Completed ones.
        passes: Losses taken with a gradient, probes and trials included.
        final: The untouched task's validation loss of the model at the end; NaN where it is not finite.
        best: The smallest logged validation loss.
        accuracy: The last accuracy, where the task has one.
        planted: What was drawn.
        span: First and last step of what was planted.
        codes: Codes of the detectors that may speak.
        causes: Causes that are right.
        repairable: Whether it can be repaired inside the run.
        seconds: Wall time.
    """

    case: Case
    folder: str
    status: Status
    why: str = ""
    steps: int = 0
    step: int = 0
    passes: int = 0
    final: float = float("nan")
    best: float = float("nan")
    accuracy: float | None = None
    planted: dict[str, float | int | str] = field(default_factory=dict[str, float | int | str])
    span: tuple[int, int] = (0, 0)
    codes: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    repairable: bool = False
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Ended":
        """Read what `as_dict` gave, also after a way through JSON.

        Args:
            data: The dictionary.

        Returns:
            What became of the case.
        """
        read = dict(data)
        read |= {name: tuple(data[name]) for name in ("span", "codes", "causes")}
        read["case"] = Case(**data["case"])
        return cls(**read)


def base_task(net: str, seed: int) -> Task:
    """The untouched task of a case.

    Args:
        net: One of the suite's nets, or a task.
        seed: Draws the suite's nets.

    Returns:
        The task.

    Raises:
        UnknownName: There is no such net or task.
    """
    if net in NETS:
        return small_task(net, seed)
    if ".py" not in net and net not in catalog.names("tasks"):
        raise UnknownName("net or task", net, [*NETS, *catalog.names("tasks")])
    return catalog.task(net)


def run_case(case: Case, out: Path) -> Ended:
    """Train a case, or read what became of it earlier.

    Args:
        case: The case.
        out: The suite's folder.

    Returns:
        What became of it.
    """
    folder = out / case.key
    if (folder / RESULT).exists():
        return Ended.from_dict(json.loads((folder / RESULT).read_text()))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.perf_counter()
    try:
        ended = _trained(case, folder)
    except NotApplicable as reason:
        ended = Ended(case=case, folder=str(folder), status="not applicable", why=str(reason))
    except BadInput as reason:
        ended = Ended(case=case, folder=str(folder), status="refused", why=str(reason), **_truth(case, case.task()))
    except Exception as error:  # a user's own task may bear what is planted badly; the other cases go on
        ended = Ended(case=case, folder=str(folder), status="failed", why=f"{type(error).__name__}: {error}")
    ended = replace(ended, seconds=time.perf_counter() - began)
    (folder / (RESULT + ".new")).write_text(json.dumps(ended.as_dict()))
    (folder / (RESULT + ".new")).rename(folder / RESULT)
    return ended


def _truth(case: Case, task: Altered) -> dict[str, Any]:
    planted = task.alteration
    if planted is None:
        return {"steps": task.steps}
    return {
        "steps": task.steps,
        "planted": planted.drawn(),
        "span": planted.span(task.steps),
        "codes": planted.codes,
        "causes": planted.causes,
        "repairable": bool(planted.undone_by),
    }


def _trained(case: Case, folder: Path) -> Ended:
    torch.set_num_threads(1)
    for seeded in (torch.manual_seed, random.seed):
        seeded(derive_seed(case.seed, "global"))
    np.random.seed(derive_seed(case.seed, "global") % 2**32)  # noqa: NPY002  (a user's augmentation may draw from it)
    task = case.task()
    model = task.model()
    optimizer = task.optimizer(model)
    scheduler = task.scheduler(optimizer)
    acting = policy(case.policy, case.seed, task.steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DynaxxWarning)  # faults are meant to alarm
        run = watch(
            model,
            optimizer,
            folder,
            loss=task.loss,
            scheduler=scheduler,
            steps=task.steps,
            budget=BUDGET,
            facts={"case": asdict(case)},
            quiet=True,
            navigate=acting.mode,
            # Of what nobody acts on, on another order, only the end is read: a third of the time.
            signals=() if case.order and acting.mode == "off" else None,
        )
        with run:
            for _ in _steps(case, task, run, model, optimizer, scheduler, acting):
                pass
            run.close("stopped" if run.stopping else "finished")
    validation = task.batches("validation", validation_seed(case.seed))
    return Ended(
        case=case,
        folder=str(folder),
        status="stopped" if run.stopping else "finished",
        why=run.stopping or "",
        step=run.step,
        passes=task.passes,
        final=evaluate(task.judged(), model, validation)["loss"],
        **_validation(run),
        **_truth(case, task),
    )


def _steps(
    case: Case, task: Altered, run: Run, model: Any, optimizer: Any, scheduler: Any, acting: Policy
) -> Iterator[int]:
    """The training, a step at a time."""
    validation = task.batches("validation", validation_seed(case.seed))
    model.train()
    for epoch in count():
        loader = task.batches("train", epoch_seed(case.data_seed, epoch)) if epoch >= run.epoch else ()
        for loss in train_steps(task, model, optimizer, run.batches(loader), scheduler=scheduler):
            run.log(loss=loss)
            fresh = _every(run.step, task.steps, EVALUATIONS)
            found: dict[str, Any] = (
                {f"val_{k}": v for k, v in evaluate(task, model, validation).items()} if fresh else {}
            )
            run.log(**found)
            acting.act(run, found.get("val_loss"))
            if acting.saves and _every(run.step, task.steps, SAVES):
                run.save(**found)
            yield run.step
            if run.step >= task.steps or run.stopping:
                return
        if run.stopping:
            return


def _every(step: int, steps: int, times: int) -> bool:
    return step == steps or step % max(1, steps // times) == 0


def _validation(run: Run) -> dict[str, float | None]:
    view = run.view()
    found: dict[str, float | None] = {}
    if "val_loss" in view.columns and np.isfinite(view["val_loss"].values).any():
        found["best"] = float(np.nanmin(view["val_loss"].values))
    if "val_accuracy" in view.columns:
        found["accuracy"] = float(view["val_accuracy"].values[-1])
    return found
