"""From what a user names, a task, a run's folder or one checkpoint, to the point of parameter space that is probed."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dynaxx import catalog
from dynaxx.checkpoints import CheckpointInfo, CheckpointStore
from dynaxx.checkpoints.manifest import load_manifest
from dynaxx.checkpoints.model_state import restore_model
from dynaxx.core.chart import Chart
from dynaxx.core.isolation import isolated_random
from dynaxx.core.loop import epoch_seed, validation_seed
from dynaxx.core.objective import Mode, Objective
from dynaxx.core.task import Split, Task, derive_seed
from dynaxx.errors import BadInput
from dynaxx.runlog import open_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point to probe.

    Args:
        objective: The loss there.
        task: Whose.
        run: The run's folder; None for a fresh model.
        step: Completed optimizer steps; 0 for a fresh model.
        seed: Of the fresh model and of the data order.
        checkpoint: Where the weights are from; None for a fresh model.
        other: A second run or checkpoint, for probes of two points.
        along: Folders of further runs, for probes of trajectories.
    """

    objective: Objective
    task: Task
    run: Path | None
    step: int
    seed: int = 0
    checkpoint: CheckpointInfo | None = None
    other: str | None = None
    along: tuple[Path, ...] = ()


def point(
    target: str,
    *,
    task: str | None = None,
    size: str | None = None,
    step: int | None = None,
    split: Split = "train",
    examples: int = 512,
    seed: int = 0,
    mode: Mode = "evaluation",
    microbatch: int | None = None,
    parameters: Sequence[str] | None = None,
    other: str | None = None,
    along: Sequence[str] = (),
) -> Point:
    """The objective at a fresh model of a task, or at a checkpoint of a run.

    Args:
        target: A task ("digits", "file.py:Class"), a run's folder (its latest valid checkpoint), or the folder of one
            checkpoint.
        task: The task, where the run does not say which it trained.
        size: The task's size; a run's own by default.
        step: Which checkpoint of a run.
        split: Whose batches.
        examples: Batches are taken until they hold so many examples.
        seed: Of the fresh model and of the data order; a run's own where a run is named.
        mode: How the modules work: see `Objective`.
        microbatch: See `Objective`.
        parameters: See `Objective`.
        other: A second run or checkpoint of the same architecture.
        along: Further runs of the same architecture.

    Returns:
        The point.

    Raises:
        BadInput: There is no such task, run or checkpoint; the run's task is not known; or there are no batches.
    """
    folder, _ = _place(target)
    saved: Mapping[str, Any] | None = None
    info: CheckpointInfo | None = None
    if folder is None:
        if step is not None:
            raise BadInput(f"probe(step={step}): {target!r} is a task, whose model is fresh. Name a run's folder.")
        work = catalog.task(task or target, size)
    else:
        facts = open_run(folder).manifest.get("facts", {})
        work = catalog.task(_task_of(folder, facts, task), size if size is not None else facts.get("size"))
        work.batch_size = int(facts.get("batch_size", work.batch_size))
        seed = int(facts.get("seed", seed))
        saved, info = read_checkpoint(target, step)
    if work.threads is not None:
        torch.set_num_threads(work.threads)
    model = fresh_model(work, seed)
    if saved is not None:
        restore_model(saved["model"], model)
    order = epoch_seed(seed, 0) if split == "train" else validation_seed(seed)
    batches = _some(work, work.batches(split, order), examples)
    return Point(
        objective=Objective.of_task(work, model, batches, mode=mode, microbatch=microbatch, parameters=parameters),
        task=work,
        run=folder,
        step=0 if info is None else info.step,
        seed=seed,
        checkpoint=info,
        other=other,
        along=tuple(map(run_folder, along)),
    )


def fresh_model(task: Task, seed: int) -> nn.Module:
    """The model as a run of that seed begins with it; the global random streams stay where they are.

    Args:
        task: Whose.
        seed: The run's.

    Returns:
        The model.
    """
    first = derive_seed(seed, "global")
    with isolated_random():  # the streams that a training seeds, in the same way
        torch.manual_seed(first)
        np.random.seed(first % 2**32)  # noqa: NPY002
        random.seed(first)
        return task.model()


def read_checkpoint(target: str, step: int | None = None) -> tuple[Mapping[str, Any], CheckpointInfo]:
    """The state that a run's folder or one checkpoint's folder stands for, every byte checked.

    Args:
        target: A run's folder (its latest valid checkpoint, unless a step is given) or a checkpoint's.
        step: Which checkpoint of a run.

    Returns:
        The state as `dynaxx.checkpoints.capture` took it, and what is known of the checkpoint.

    Raises:
        BadInput: There is no such run or checkpoint.
        CorruptData: It is corrupted, or all are.
    """
    folder, checkpoint = _place(target)
    if folder is None:
        raise BadInput(
            f"probe: {target!r} is neither a run's folder nor one of its checkpoints. `dynaxx train` makes one."
        )
    store = CheckpointStore(folder / "checkpoints")
    if checkpoint is None:
        return store.load(step)
    info = load_manifest(checkpoint).info(checkpoint)
    if step not in (None, info.step):
        raise BadInput(f"probe(step={step}): {target!r} is the checkpoint of step {info.step}. Leave out the step.")
    return store.load(info)


def run_folder(target: str) -> Path:
    """The folder of a run that must be one.

    Args:
        target: What was named.

    Returns:
        The folder.

    Raises:
        BadInput: It holds no run.
    """
    folder = Path(target)
    if not (folder / "run.json").is_file():
        raise BadInput(f"probe: {target!r} is no run's folder (it holds no run.json).")
    return folder


def _place(target: str) -> tuple[Path | None, Path | None]:
    """The run's folder, where the target is one or a checkpoint within one; and the checkpoint's."""
    path = Path(target)
    if (path / "run.json").is_file():
        return path, None
    if path.parent.name == "checkpoints" and (path.parent.parent / "run.json").is_file():
        return path.parent.parent, path
    if path.is_dir():
        raise BadInput(
            f"probe: {target!r} is neither a run's folder (it holds no run.json) nor one of its checkpoints."
        )
    return None, None


def _task_of(folder: Path, facts: Any, named: str | None) -> str:
    spec = named or facts.get("spec") or facts.get("task")
    if not spec:
        raise BadInput(
            f"probe: the run {str(folder)!r} does not say which task it trained. Name it: --task file.py:Class."
        )
    return str(spec)


def _some(task: Task, batches: Iterable[Any], examples: int) -> list[Any]:
    if examples < 1:
        raise BadInput(f"probe(examples=...) must be at least 1. Got {examples}.")
    found: list[Any] = []
    held = 0.0
    for batch in islice(batches, examples):
        found.append(batch)
        held += task.weight(batch)
        if held >= examples:
            break
    if not found:
        raise BadInput(f"{type(task).__name__}.batches gave no batch to probe on. Give at least one.")
    return found


def remember(chart: Chart, there: Point) -> Path | None:
    """Keep a chart in the run's folder, where its report finds it; nothing is written for a fresh model.

    Args:
        chart: What a probe found.
        there: Where.

    Returns:
        The file, `charts/<step>-<probe>.json`; None for a fresh model.
    """
    if there.run is None:
        return None
    path = there.run / "charts" / f"{there.step:010d}-{chart.probe}.json"
    path.parent.mkdir(exist_ok=True)
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(chart.to_dict()))
    aside.replace(path)
    return path
