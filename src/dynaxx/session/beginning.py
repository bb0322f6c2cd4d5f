"""What a Task's training asks of its folder, its first loss and its start, and of the log when it is over."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynaxx.checkpoints import CheckpointStore
from dynaxx.checkpoints.model_state import check_model, restore_model
from dynaxx.core.task import Task, first_tensor
from dynaxx.errors import BadInput
from dynaxx.runlog import open_run


def begin_from(checkpoint: Path, model: torch.nn.Module) -> None:
    """Give a model the weights of a checkpoint.

    Args:
        checkpoint: The checkpoint's folder.
        model: The model; its tensors keep their addresses.

    Raises:
        BadInput: It is no committed checkpoint, or one of another architecture.
    """
    store = CheckpointStore(checkpoint.parent)
    found = [info for info in store.list() if info.path.name == checkpoint.name]
    if not found:
        raise BadInput(f"train(start=...) must be the folder of a committed checkpoint. Got {str(checkpoint)!r}.")
    saved = store.load(found[0])[0]["model"]
    check_model(saved, model)
    restore_model(saved, model)


def best_of(folder: Path) -> dict[str, float]:
    """The smallest val_loss of the whole run, whichever process measured it.

    Args:
        folder: The run's folder.

    Returns:
        val_loss and step; empty where it was never measured.
    """
    view = open_run(folder)
    if "val_loss" not in view.columns:
        return {}
    column = view["val_loss"]
    values = np.asarray(column, dtype=float)
    if not np.isfinite(values).any():
        return {}
    at = int(np.nanargmin(values))
    return {"val_loss": float(values[at]), "step": int(column.steps[at])}


def finite_start(task: Task, loss: torch.Tensor, loader: Any) -> None:
    """A first loss that is not finite is a mistake in data, model or loss: say which before a day is spent on it.

    Args:
        task: The task.
        loss: Of the first batch.
        loader: What the batch came from.

    Raises:
        BadInput: It is not finite.
    """
    if bool(torch.isfinite(loss)):
        return
    tensor = first_tensor(next(iter(loader)))
    bad = tensor is not None and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    where = "its input holds NaN or infinite values: clean the data" if bad else "its input is finite: check the loss"
    raise BadInput(f"{type(task).__name__}: the loss of the first batch is {float(loss)}; {where}.")


def same_settings(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether the folder's run is finished; refuses to go on with one that was begun otherwise.

    Args:
        folder: The run's folder.
        wanted: The settings of now.

    Returns:
        True where there is nothing left to do.

    Raises:
        BadInput: It was begun with other settings.
    """
    if not (folder / "run.json").exists():
        return False
    view = open_run(folder)
    kept = {**view.manifest.get("facts", {}), "steps": view.manifest.get("steps")}
    for key, value in wanted.items():
        if key in kept and kept[key] != value:
            raise BadInput(
                f"train(resume=True): {folder} was begun with {key} = {kept[key]!r}, not {value!r}. "
                f"Leave the option as it was, or train in another folder."
            )
    last = view.attempts[-1] if view.attempts else None
    return last is not None and last.status == "finished"
