"""From rows of named numbers, as other tools write them, to columns under our names."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dynaxx.errors import BadInput
from dynaxx.runlog import Table

_STEPS = ("step", "global_step", "_step", "trainer/global_step", "iteration", "iter", "iter_num", "update", "steps")
"""What tools call the number of optimizer steps, in the order in which they are looked for."""
_CLOCKS = frozenset({"_runtime", "_timestamp", "wall_time", "walltime", "time", "timestamp", "relative"})
_OURS = {
    "loss": ("loss", "train_loss", "train/loss", "training_loss", "loss/train", "train_loss_step", "train.loss"),
    "val_loss": (
        "val_loss", "eval_loss", "eval/loss", "val/loss", "valid_loss", "validation_loss", "valid/loss", "loss/val",
        "loss/validation", "dev_loss", "test_loss", "val.loss", "validation/loss",
    ),
    "lr": ("lr", "learning_rate", "train/learning_rate", "train/lr", "lr-adam", "lr-adamw", "lr-sgd", "lr/group0"),
    "grad_norm.total": (
        "grad_norm", "train/grad_norm", "gradient_norm", "grad_norm_total", "grad/norm", "grad_2.0_norm_total",
        "total_grad_norm", "global_grad_norm",
    ),
    "epoch": ("epoch", "train/epoch"),
}  # fmt: skip
"""Our name → what the quantity is called elsewhere, in lower case: PyTorch Lightning, Transformers, Keras, W&B."""
_NAME = {theirs: ours for ours, names in _OURS.items() for theirs in names}


def table(rows: Iterable[Mapping[str, Any]], name: str) -> Table:
    """Columns out of rows.

    A row may hold some of the columns only (evaluation beside training); of two values for one step and column the
    later one counts, as after a resumption. What is no number is left out.

    Args:
        rows: In the order they were written.
        name: What the log is called in messages.

    Returns:
        The log. Its manifest says what the steps are, where they are not optimizer steps.

    Raises:
        BadInput: There is no row with a number, or the steps begin anew: two runs in one log.
    """
    kept = [{key: number for key, value in row.items() if (number := _number(value)) is not None} for row in rows]
    kept = [row for row in kept if row]
    counter = next((key for key in _STEPS if any(_plain(k) == key for row in kept for k in row)), None)
    kind = "optimizer steps, as logged" if counter else "epochs" if any("epoch" in row for row in kept) else "rows"
    found: dict[str, dict[int, float]] = {}
    last, first = -1, None
    for place, row in enumerate(kept):
        step = _step(row, counter, place, last)
        if step is None:
            continue
        first = step if first is None else first
        if step < last and step <= first:
            raise BadInput(
                f"{name}: the steps begin anew in row {place + 1} (from {last} back to {step}): it holds two runs. "
                "Split it, or give one run's own log."
            )
        last = step
        for key, value in row.items():
            if _plain(key) not in _STEPS and _plain(key) not in _CLOCKS:
                found.setdefault(_NAME.get(_plain(key), key), {})[step] = value
    if not found:
        raise BadInput(f"{name}: there is no row with a number. Is it a log of a training?")
    series = {key: _ordered(values) for key, values in found.items()}
    return Table(series, manifest={"facts": {"source": name, "steps are": kind}}, name=name)


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one level, joined by slashes.

    Args:
        record: A JSON object.
        prefix: What stands before every name.

    Returns:
        Name → value.

    Example:
        >>> flat({"train": {"loss": 1.0}, "step": 2})
        {'train/loss': 1.0, 'step': 2}
    """
    found: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}/")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _step(row: Mapping[str, float], counter: str | None, place: int, last: int) -> int | None:
    """The step of a row; a row without one belongs to the last that had one."""
    if counter is not None:
        own = next((value for key, value in row.items() if _plain(key) == counter), None)
        return (last if last >= 0 else None) if own is None or not math.isfinite(own) else round(own)
    if "epoch" in row and math.isfinite(row["epoch"]) and float(row["epoch"]).is_integer():
        return round(row["epoch"])
    return place


def _ordered(values: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    steps = np.array(sorted(values), dtype=np.int64)
    return steps, np.array([values[int(step)] for step in steps], dtype=np.float64)


def _plain(name: str) -> str:
    return re.sub(r"\s+", "_", name.strip().lower())


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return None
