"""What the log says beside its columns: the plan, the layers, the optimizer's settings, results of live checks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynaxx.core.findings import Log
from dynaxx.errors import NotApplicable

NO_MATRIX = ("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm", "SyncBatchNorm", "Embedding", "PReLU")
"""Beginnings of the kinds of layers whose gradients do not compare with those of weight matrices: scales of a
normalisation are few and see every example; rows of an embedding see few."""


def planned(run: Log) -> int | None:
    """The planned number of steps.

    Args:
        run: The log.

    Returns:
        The number; None where it is unknown.
    """
    steps = run.manifest.get("steps")
    return int(steps) if isinstance(steps, int | float) and steps > 0 else None


def checked(run: Log, name: str) -> Mapping[str, Any]:
    """What the last live check of a name found.

    Args:
        run: The log.
        name: The check.

    Returns:
        Its values; empty where it was not made.
    """
    for event in reversed(run.events("check")):
        if event.get("name") == name:
            return event.get("values") or {}
    return {}


def groups(run: Log) -> list[Mapping[str, Any]]:
    """The optimizer's parameter groups as they were when the run began.

    Args:
        run: The log.

    Returns:
        One mapping per group; empty where it is not known.
    """
    return list(run.manifest.get("optimizer", {}).get("groups", ()))


def group(run: Log, key: str, default: float = 0.0) -> float:
    """A setting of the optimizer: the largest over its groups.

    Args:
        run: The log.
        key: "weight_decay", "momentum" …
        default: Where no group has it as a number.

    Returns:
        The number.
    """
    groups = (run.manifest.get("optimizer") or {}).get("groups") or []
    numbers = [float(g[key]) for g in groups if isinstance(g.get(key), int | float)]
    return max(numbers, default=default)


def adaptive(run: Log) -> bool:
    """Whether the optimizer divides by second moments, by its name.

    Args:
        run: The log.

    Returns:
        True for Adam and its kin.
    """
    name = str((run.manifest.get("optimizer") or {}).get("class", "")).lower()
    return any(word in name for word in ("adam", "rmsprop", "adagrad", "lamb", "soap", "shampoo", "lion"))


def dropout(run: Log) -> float | None:
    """The largest share that a module of the model drops at random.

    Args:
        run: The log.

    Returns:
        The probability, 0 where no module drops; None where the log does not say.
    """
    found = (run.manifest.get("model") or {}).get("dropout")
    return None if found is None else max(map(float, found.values()), default=0.0)


def sigmoids(run: Log) -> int:
    """How many logistic sigmoids the model has: each passes a quarter of the gradient back at most.

    Args:
        run: The log.

    Returns:
        The number; 0 where the log does not say.
    """
    return int(((run.manifest.get("model") or {}).get("modules") or {}).get("Sigmoid", 0))


def layer_facts(run: Log) -> dict[str, Mapping[str, Any]]:
    """What the manifest says of each layer: kind, numel, trainable.

    Args:
        run: The log.

    Returns:
        Name → facts; empty for another tool's log.
    """
    return {layer["name"]: layer for layer in run.manifest.get("model", {}).get("layers", ())}


def matrices(run: Log, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The layers that hold trainable weight matrices, in the order in which the model defines them.

    Args:
        run: The log.
        labels: Names of the layers of a column.

    Returns:
        Their places among the labels, and how many parameters each has.

    Raises:
        NotApplicable: The manifest does not say what the layers are.
    """
    facts = layer_facts(run)
    if not facts:
        raise NotApplicable("the log does not say what kind of layers the model has")
    places = [
        i
        for i, label in enumerate(labels)
        if label in facts and facts[label]["trainable"] > 0 and not facts[label]["kind"].startswith(NO_MATRIX)
    ]
    return np.array(places, dtype=np.int64), np.array([facts[labels[i]]["numel"] for i in places], dtype=np.float64)
