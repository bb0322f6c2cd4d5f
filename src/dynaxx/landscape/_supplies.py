"""What the command line gives a probe where it takes objects: from an argument's name to the object at a point."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynaxx.checkpoints import CheckpointInfo, CheckpointStore
from dynaxx.checkpoints.model_state import capture_model
from dynaxx.checkpoints.optimizer_state import check_optimizer, restore_optimizer
from dynaxx.core.isolation import evaluation
from dynaxx.core.loop import epoch_seed
from dynaxx.core.snapshot import Snapshot
from dynaxx.core.task import Task
from dynaxx.errors import BadInput, CorruptData, DynaxxWarning
from dynaxx.landscape._point import Point, fresh_model, read_checkpoint
from dynaxx.landscape._run_names import run_names

_SHOWN = 5


class TrainingBatches:
    """A task's training batches, epoch after epoch without end, from the first epoch at each iteration.

    Args:
        task: Whose.
        seed: The run's; the order is that of its training.
    """

    def __init__(self, task: Task, seed: int) -> None:
        self._task = task
        self._seed = seed

    def __iter__(self) -> Iterator[Any]:
        for epoch in count():
            empty = True
            for batch in self._task.batches("train", epoch_seed(self._seed, epoch)):
                empty = False
                yield batch
            if empty:
                raise BadInput(f"{type(self._task).__name__}.batches('train', seed) gave no batch. Give at least one.")


def _optimizer(there: Point) -> Callable[[nn.Module], Optimizer]:
    """The task's optimizer for a model, going on from the checkpoint's moments and rates."""
    read = cache(lambda: None if there.checkpoint is None else _loaded(there.checkpoint)["optimizer"])

    def optimizer(model: nn.Module) -> Optimizer:
        made, saved = there.task.optimizer(model), read()
        if saved is not None:
            check_optimizer(saved, made, model)
            restore_optimizer(saved, made)
        return made

    return optimizer


def _training(there: Point) -> TrainingBatches:
    return TrainingBatches(there.task, there.seed)


def _initial(there: Point) -> Mapping[str, Tensor]:
    """The weights that the run began with: the seed decides them."""
    return _tensors(capture_model(fresh_model(there.task, there.seed)))


def _reference(there: Point) -> Mapping[str, Tensor] | None:
    """What drift is measured from; a fresh model has not drifted."""
    return None if there.checkpoint is None else _initial(there)


def _other(there: Point) -> Mapping[str, Tensor] | None:
    if there.other is None:
        return None
    return _weights(read_checkpoint(there.other)[0], there.objective.model, there.other)


def _trajectory(there: Point) -> Sequence[Snapshot] | None:
    """Run by run, each oldest first. Every byte of a snapshot is checked when it is loaded, not before."""
    runs = list(dict.fromkeys(folder for folder in (there.run, *there.along) if folder is not None))
    model = there.objective.model

    def snapshot(run: str, info: CheckpointInfo) -> Snapshot:
        return Snapshot(step=info.step, run=run, load=lambda: _weights(_loaded(info), model, str(info.path)))

    named = zip(run_names(runs), runs, strict=True)
    return [snapshot(name, info) for name, run in named for info in _checkpoints(run)] if runs else None


def _checkpoints(run: Path) -> Sequence[CheckpointInfo]:
    """The last valid save of each step; what is passed over is said."""
    store, found = CheckpointStore(run / "checkpoints"), dict[int, CheckpointInfo]()
    for info in store.list():
        try:
            store.verify(info, deep=False)
        except CorruptData as error:
            warnings.warn(f"A corrupted checkpoint is passed over: {error}", DynaxxWarning, stacklevel=2)
        else:
            found[info.step] = info
    return tuple(found.values())


def _error(there: Point) -> Callable[[nn.Module, Any], Tensor] | None:
    """1 − accuracy, where the task names one and it is a share: in percent it would be none in [0, 1]."""
    task, model, batch = there.task, there.objective.model, there.objective.batches[0]
    with evaluation(model):
        seen = task.metrics(model, batch).get("accuracy")
    if seen is None or not 0 <= float(seen) <= 1:
        return None

    def error(model: nn.Module, batch: Any) -> Tensor:
        return 1 - torch.as_tensor(task.metrics(model, batch)["accuracy"])

    return error


def _targets(there: Point) -> Callable[[Any], Tensor] | None:
    """The second of a pair (inputs, targets): one class index, or one vector of numbers, for each example."""
    batch = there.objective.batches[0]
    if not (isinstance(batch, list | tuple) and len(batch) == 2 and isinstance(batch[1], Tensor)):  # pyright: ignore[reportUnknownArgumentType]
        return None
    if not (batch[1].dim() == 1 or (batch[1].dim() > 1 and batch[1].is_floating_point())):  # a token for each position
        return None
    return lambda pair: pair[1]


SUPPLIES: Mapping[str, Callable[[Point], Any]] = {
    "optimizer": _optimizer,
    "training": _training,
    "initial": _initial,
    "reference": _reference,
    "other": _other,
    "trajectory": _trajectory,
    "error": _error,
    "targets": _targets,
}
"""Name of a constructor's argument → what gives the object at a point, or None where there is none."""


def _loaded(info: CheckpointInfo) -> Mapping[str, Any]:
    return CheckpointStore(info.path.parent).load(info)[0]


def _weights(saved: Mapping[str, Any], model: nn.Module, where: str) -> Mapping[str, Tensor]:
    """Parameters and buffers of a checkpoint, which must be those of the model."""
    there, here = _shapes(saved["model"]), _shapes(capture_model(model))
    names = [name for name in {**here, **there} if there.get(name) != here.get(name)]
    if names:
        listed = ", ".join(
            f"{n} {there.get(n, 'missing')} there, {here.get(n, 'missing')} here" for n in names[:_SHOWN]
        )
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise BadInput(
            f"probe: {where!r} is of another architecture: {len(names)} tensors differ: {listed}{more}. "
            "Name a checkpoint of the same model."
        )
    return _tensors(saved["model"])


def _shapes(saved: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Buffers that are not persistent are left out: some grow."""
    return {name: tuple(t.shape) for name, t in saved["state"].items() if isinstance(t, Tensor)}


def _tensors(saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """Parameters and buffers by their bare names."""
    return {name: t.detach() for name, t in {**saved["state"], **saved["buffers"]}.items() if isinstance(t, Tensor)}
