"""The data sets that ship inside scikit-learn, imported when a task needs them, and how they are split."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xxhash

from dynaxx.core.task import Split
from dynaxx.errors import BadInput

Pair = tuple[torch.Tensor, torch.Tensor]
"""Inputs and targets."""


def bundled(task: str, loader: str, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Load one of the sets bundled in `sklearn.datasets`; nothing is downloaded.

    Args:
        task: Who asks, for the error.
        loader: The function's name ("load_digits").
        options: Its further arguments.

    Returns:
        Inputs of shape (rows, features), and targets of shape (rows,).

    Raises:
        BadInput: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise BadInput(
            f"The task {task!r} needs scikit-learn, which holds its data. Install it: pip install 'dynaxx[tasks]'"
        ) from None
    return vars(datasets)[loader](return_X_y=True, **options)


def every_fifth(count: int, seed: int) -> np.ndarray:
    """A fixed random fifth of the rows.

    Args:
        count: How many rows there are.
        seed: Of the draw.

    Returns:
        bool of shape (count,), true in `count // 5` places.
    """
    chosen = np.zeros(count, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(count)[: count // 5]] = True
    return chosen


def facts(name: str, data: Mapping[Split, Pair]) -> Mapping[str, str | int | float]:
    """Size and hash of both splits, for the log.

    Args:
        name: What the data is called.
        data: Inputs and targets by split.

    Returns:
        The facts of a task.
    """
    digest = xxhash.xxh3_128()
    for split in ("train", "validation"):
        for tensor in data[split]:
            digest.update(tensor.contiguous().numpy().tobytes())
    return {
        "data": name,
        "train_examples": len(data["train"][1]),
        "validation_examples": len(data["validation"][1]),
        "xxh3_128": digest.hexdigest(),
    }
