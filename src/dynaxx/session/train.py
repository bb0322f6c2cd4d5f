"""Trains a Task in a run folder of its own: what `dynaxx train` does."""

import math
import random
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors.torch import save_model

from dynaxx.averaging import recompute_batch_norm
from dynaxx.checkpoints import CheckpointStore
from dynaxx.checkpoints.places import LocalPlace
from dynaxx.checkpoints.policy_words import policy
from dynaxx.checkpoints.retention import Last, Policy
from dynaxx.core.loop import epoch_seed, evaluate, train_steps, validation_seed
from dynaxx.core.methods import Averager
from dynaxx.core.navigation import Mode
from dynaxx.core.task import Split, Task, derive_seed
from dynaxx.errors import BadInput
from dynaxx.session.beginning import begin_from, best_of, finite_start, same_settings
from dynaxx.session.ending import KEEP, end
from dynaxx.session.interrupts import interruptible
from dynaxx.session.lessons import Lessons, lessons
from dynaxx.session.moments import OFTEN, Due
from dynaxx.session.recipe import Method, Recipe
from dynaxx.session.run import Run
from dynaxx.session.samples import Samples
from dynaxx.session.watch import watch

AVERAGED = "averaged.safetensors"
"""The averaged model of a run that finished: what it found besides the last weights."""
KEPT = "last:3,best:1,spread:16:2e9"
"""What stays of a run's checkpoints unless it is said: enough of them, over all of it, for a blend, a trajectory or a
branch, within 2 GB, which an unasked-for history may take of a disk: 16 states of 10 M parameters under AdamW."""
STATISTICS = 16
"""Training batches from which statistics of batch normalisation are taken for averaged weights: a thousand examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a training is, after a step.

    Args:
        step: Completed optimizer steps.
        steps: Planned ones.
        loss: The step's loss, on its device.
        rate: Largest learning rate.
        validation: The latest evaluation by name; empty before the first.
        fresh: Whether this step was evaluated.
    """

    step: int
    steps: int
    loss: torch.Tensor
    rate: float
    validation: Mapping[str, float]
    fresh: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a training ended.

    Args:
        run: Its folder.
        status: "finished", "interrupted" (by a signal; a checkpoint is written), "stopped" (by an action) or "already
            finished" (there was nothing to resume).
        step: Completed optimizer steps.
        steps: Planned ones.
        seconds: Wall time of this process's part.
        loss: The last loss; None where no step was taken.
        validation: The last evaluation by name.
        best: The smallest val_loss and its step.
        overhead: Share of the step time that measuring took.
        why: Why the run stopped.
        blend: Of a run that had converged: what became of the blend of its last checkpoints (`session.ending`).
    """

    run: str
    status: Literal["finished", "interrupted", "stopped", "already finished"]
    step: int
    steps: int
    seconds: float = 0.0
    loss: float | None = None
    validation: Mapping[str, float] = field(default_factory=dict[str, float])
    best: Mapping[str, float] = field(default_factory=dict[str, float])
    overhead: float = 0.0
    why: str | None = None
    blend: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The outcome as plain data."""
        return asdict(self)


def train(
    task: Task,
    dir: str | Path,
    *,
    name: str,
    seed: int = 0,
    steps: int | None = None,
    accumulate: int = 1,
    recipe: Recipe | None = None,
    navigate: Mode = "advise",
    resume: bool = False,
    budget: float = 0.02,
    quiet: bool = False,
    spec: str | None = None,
    order_seed: int | None = None,
    horizon: int | None = None,
    start: str | Path | None = None,
    signals: Sequence[str] | None = None,
    evaluations: int = OFTEN["evaluation"],
    checkpoints: int | None = OFTEN["checkpoint"],
    keep: str = KEPT,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Train a task, evaluate it on the way, and write checkpoints, so that `resume` goes on bit for bit.

    Args:
        task: What to train.
        dir: The run's own folder.
        name: What to call the task in the log.
        seed: Determines initialisation, data order and every other random draw.
        steps: Optimizer steps; None: the task's own number.
        accumulate: Batches per optimizer step.
        recipe: The methods; None: the task's own.
        navigate: "advise": findings and what would be done about them are logged. "act": it is done. "off": neither.
        resume: Go on from the folder's latest checkpoint; where there is none, begin.
        budget: Share of the step time that measuring may take.
        quiet: Do not print the self-test's line.
        spec: How the task is found again ("digits", "/path/file.py:Class"), for who probes the run later.
        order_seed: Determines the order of the training data instead of `seed`.
        horizon: Optimizer steps that the task's schedule is made for, where the training ends earlier; None: `steps`.
        start: A checkpoint's folder, whose weights the model begins from, with a fresh optimizer.
        signals: Names of the signals to measure; None: the default ones.
        evaluations: About how many evaluations there are, the last step's included; at most 50.
        checkpoints: About how many checkpoints, likewise; at most 20. None: as `SavePolicy` has it, densely while the
            training is young, then at plateaus and for safety, each written beside the training.
        keep: Which checkpoints stay, as `dynaxx checkpoints prune` takes it in words.
        progress: Called after every step.

    Returns:
        The outcome.

    Raises:
        BadInput: An argument, the task or its data breaks a rule; or a resumed run was begun with other settings.
    """
    steps = task.steps if steps is None else steps
    _check(steps, horizon, evaluations, checkpoints)
    recipe = recipe or Recipe()
    task.steps = horizon or steps  # what the task's schedule reads
    settings: dict[str, Any] = {
        "task": name,
        "size": task.size,
        "width": task.width,
        "seed": seed,
        "order_seed": seed if order_seed is None else order_seed,
        "accumulate": accumulate,
        "batch_size": task.batch_size,
        "recipe": recipe.settings(),
        "horizon": task.steps,
        "start": None if start is None else str(start),
    }
    if resume:
        done = same_settings(Path(dir), {**settings, "steps": steps})
        if done:
            return Outcome(run=str(dir), status="already finished", step=steps, steps=steps)
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    torch.manual_seed(derive_seed(seed, "global"))
    np.random.seed(derive_seed(seed, "global") % 2**32)  # noqa: NPY002  (users' augmentations draw from it)
    random.seed(derive_seed(seed, "global"))
    model = task.model()
    if start is not None:
        begin_from(Path(start), model)
    method = recipe.method(task, model, task.steps)
    samples = Samples(task)
    taught = lessons(task, recipe.curriculum, steps * accumulate, settings["order_seed"])
    run = watch(
        model,
        method.optimizer,
        dir,
        loss=task.loss,
        navigate=navigate,
        scheduler=method.scheduler,
        state={**method.state, **samples.parts},
        steps=steps,
        resume=resume,
        signals=signals,
        budget=budget,
        rates=method.rates,
        facts={**settings, "spec": spec or name, "data": dict(task.facts())},
        quiet=quiet,
    )
    if method.own_averager is not None:
        method.own_averager.attach(method.optimizer)  # after the run's own hook, which may scale the update by layer
    if recipe.clip is not None and run.step == 0:
        run.apply("gradient_clip", max_norm=recipe.clip, reason="asked for by the configuration")
    plan = _Plan(
        steps=steps,
        seed=seed,
        order_seed=settings["order_seed"],
        keep=policy(keep, LocalPlace(CheckpointStore(run.dir / "checkpoints"))),
        evaluations=evaluations,
        checkpoints=checkpoints,
        lessons=taught,
    )
    run.steering.accumulates, run.steering.accumulate = True, accumulate
    run.steering.trials.train = lambda batches: _steps(task, run, model, method, batches)
    with run, interruptible() as interrupted:
        outcome = _loop(task, run, plan, model, method, samples, interrupted, progress)
        if outcome.status == "finished" and method.averager is not None and method.averager.ready:
            with averaged(task, model, method.averager, plan.order_seed):
                save_model(model, str(run.dir / AVERAGED))
        if outcome.status == "stopped" and (since := run.steering.ending) is not None:
            outcome = replace(outcome, blend=end(task, run, since))
        run.close(outcome.status)
    return replace(outcome, best=best_of(run.dir))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What the loop needs to know: see the arguments of `train`."""

    steps: int
    seed: int
    order_seed: int
    keep: Policy
    evaluations: int
    checkpoints: int | None
    lessons: Lessons

    def evaluates(self, run: Run) -> bool:
        """Whether it is time to evaluate: the run's own moments, thinned to about as many as are wanted."""
        return self._due(run, "evaluation", self.evaluations)

    def saves(self, run: Run, history: Sequence[tuple[int, float]]) -> str | None:
        """Why it is time to save, given the steps and losses of the evaluations; None: it is not."""
        if self.checkpoints is not None:
            return "planned" if self._due(run, "checkpoint", self.checkpoints) else None
        return run.steering.save_due(history)

    def _due(self, run: Run, what: Due, times: int) -> bool:
        own, wanted = max(1, self.steps // OFTEN[what]), max(1, self.steps // times)
        return run.due(what) and (run.step == self.steps or run.step % wanted < own)


def _check(steps: int, horizon: int | None, evaluations: int, checkpoints: int | None) -> None:
    if steps < 1:
        raise BadInput(f"train(steps=...) must be at least 1. Got {steps}.")
    if horizon is not None and horizon < steps:
        raise BadInput(f"train(horizon=...) must be at least steps, {steps}: the schedule must last. Got {horizon}.")
    for name, times in (("evaluations", evaluations), ("checkpoints", checkpoints)):
        if times is not None and times < 1:
            raise BadInput(f"train({name}=...) must be at least 1: the last step always has one. Got {times}.")


def _loop(
    task: Task,
    run: Run,
    plan: _Plan,
    model: torch.nn.Module,
    method: Method,
    samples: Samples,
    interrupted: threading.Event,
    progress: Callable[[Progress], None],
) -> Outcome:
    began = time.perf_counter()
    held = {"val": task.batches("validation", validation_seed(plan.seed))}
    held |= {name: task.batches(cast(Split, name), validation_seed(plan.seed)) for name in task.retained}
    latest: dict[str, float] = {}
    history = _evaluated(run)
    empty = 0
    loss: torch.Tensor | None = None
    status: Literal["finished", "interrupted", "stopped"] = "finished"
    optimizer = method.optimizer
    rate = _rate(optimizer) * method.factor
    model.train()
    for epoch in count():
        if run.step >= plan.steps or status != "finished":
            break
        before, done = run.step, epoch < run.epoch
        loader = () if done else plan.lessons(epoch)
        for loss in _steps(task, run, model, method, run.batches(loader)):
            run.log(loss=loss)
            while history and history[-1][0] >= run.step:  # the run has gone back past it
                history.pop()
            if run.step == 1:
                finite_start(task, loss, loader)
            fresh = plan.evaluates(run)
            if fresh:
                latest = _measures(task, model, held)
                averager = method.averager
                if averager is not None and averager.ready:
                    with averaged(task, model, averager, plan.order_seed):
                        both = evaluate(task, model, held["val"])
                    latest |= {f"averaged_val_{k}": v for k, v in both.items()}
                run.log(**latest, **samples.take(model))
                history.append((run.step, latest["val_loss"]))
            status = "interrupted" if interrupted.is_set() else "stopped" if run.stopping else status
            ending = run.steering.ending if fresh or run.stopping else None
            why = "ending" if ending is not None else plan.saves(run, history)
            if why is not None or status != "finished":
                beside = plan.checkpoints is None and ending is None and status == "finished" and run.step < plan.steps
                run.save(keep=plan.keep if ending is None else plan.keep | Last(KEEP), wait=not beside, **latest)
            progress(Progress(step=run.step, steps=plan.steps, loss=loss, rate=rate, validation=latest, fresh=fresh))
            rate = _rate(optimizer) * method.factor  # the scheduler has moved on: this is the next step's
            if run.step >= plan.steps or status != "finished":
                break
        if run.stopping and status == "finished":  # between two steps, as after a return to the best checkpoint
            status, latest = "stopped", _measures(task, model, held)
            run.save(keep=plan.keep, wait=True, **latest)
            break
        # A resumed run may have had the last batch of its epoch already: only a second empty epoch is a mistake.
        empty = empty + 1 if run.step == before and not done else 0
        if empty == 2:
            raise BadInput(f"{type(task).__name__}.batches('train', seed) gave no batch. Give at least one.")
    return Outcome(
        run=str(run.dir),
        status=status,
        step=run.step,
        steps=plan.steps,
        seconds=time.perf_counter() - began,
        loss=None if loss is None else float(loss),
        validation=latest,
        overhead=run.overhead,
        why=run.stopping,
    )


def _measures(task: Task, model: torch.nn.Module, held: Mapping[str, Iterable[Any]]) -> dict[str, float]:
    """The measures of every held set, under its name."""
    return {f"{name}_{k}": v for name, batches in held.items() for k, v in evaluate(task, model, batches).items()}


def _steps(
    task: Task, run: Run, model: torch.nn.Module, method: Method, batches: Iterable[Any]
) -> Iterator[torch.Tensor]:
    """The steps of the training and of its trials, with as many batches to each as are wanted at the time."""
    return train_steps(
        task,
        model,
        method.optimizer,
        batches,
        scheduler=method.scheduler,
        accumulate=lambda: run.steering.batches_per_update,
        perturber=lambda: method.perturber,
    )


@contextmanager
def averaged(task: Task, model: torch.nn.Module, averager: Averager, order_seed: int) -> Generator[None]:
    """The averaged weights in the model, with statistics of batch normalisation of their own.

    Args:
        task: Gives the batches for the statistics.
        model: The model.
        averager: The average; it is ready.
        order_seed: Of the training data.
    """
    batches = islice(iter(task.batches("train", epoch_seed(order_seed, 0))), STATISTICS)
    with averager.swapped():
        recompute_batch_norm(model, batches, task.loss)
        yield


def _evaluated(run: Run) -> list[tuple[int, float]]:
    """Step and validation loss of the evaluations before a resumption."""
    view = run.view()
    if run.step == 0 or "val_loss" not in view.columns:
        return []
    column = view["val_loss"]
    pairs = zip(column.steps.tolist(), column.values.tolist(), strict=True)
    return [(step, value) for step, value in pairs if step <= run.step]


def _rate(optimizer: torch.optim.Optimizer) -> float:
    return max(float(group.get("lr", math.nan)) for group in optimizer.param_groups)
