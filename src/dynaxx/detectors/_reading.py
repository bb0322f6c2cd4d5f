"""How detectors read a log: rows of a column, stretches of steps, facts of model and optimizer, belief in a cause."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dynaxx.core.findings import Cause, Log, Remedy
from dynaxx.detectors._read import Track, track
from dynaxx.detectors._weigh import Suspect, ranked
from dynaxx.errors import NotApplicable

ROWS = 1024
"""Rows of a column that are looked at: what persists for a thousandth of a run is seen, and 10 000 steps × 30 layers
take under 5 ms."""
QUIETLY = np.errstate(all="ignore")
"""For `detect`: what is not finite, or overflows on the way, fails every comparison, and needs no warning."""
NO_MATRIX = ("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm", "SyncBatchNorm", "Embedding", "PReLU")
"""Beginnings of the kinds of layers whose gradients do not compare with those of weight matrices: scales of a
normalisation are few and see every example; rows of an embedding see few."""


def rows(run: Log, name: str, least: int = 1) -> Track:
    """A column, thinned evenly where its rows are many.

    Thinning keeps the steps that are multiples of a power of two, so that a longer log shows the same rows of its past.

    Args:
        run: The log.
        name: The column.
        least: Rows that the detector needs.

    Returns:
        The rows; `NotApplicable` is raised as by `track`.
    """
    found = track(run, name, least)
    if len(found) <= 2 * ROWS:
        return found
    stride = 1 << int(np.log2(len(found) / ROWS))
    kept = found.rows(found.steps % stride == 0)
    return kept if len(kept) >= max(least, ROWS // 2) else found


def matching(one: Track, other: Track) -> tuple[np.ndarray, np.ndarray]:
    """The places of the steps that two columns share.

    Args:
        one: A column.
        other: Another.

    Returns:
        Places in the one and in the other, in order.
    """
    _, here, there = np.intersect1d(one.steps, other.steps, assume_unique=True, return_indices=True)
    return here, there


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` rows up to each row, over the finite ones; of fewer at the beginning.

    Args:
        values: Shape (rows,) or (rows, entries).
        window: Rows.

    Returns:
        The same shape; NaN where no value of the window is finite.

    Example:
        >>> moving_mean(np.array([1.0, 3.0, np.nan, 5.0]), 2)
        array([1., 2., 3., 5.])
    """
    finite = np.isfinite(values)
    sums = np.cumsum(np.where(finite, values, 0.0), axis=0)
    counts = np.cumsum(finite, axis=0, dtype=np.float64)
    sums[window:], counts[window:] = sums[window:] - sums[:-window], counts[window:] - counts[:-window]
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def stretches(steps: np.ndarray, flags: np.ndarray, least: int, end: int) -> tuple[tuple[int, int], ...]:
    """Where a condition held for at least so many rows on end.

    Args:
        steps: Shape (rows,).
        flags: bool of shape (rows,).
        least: Rows that a stretch must have.
        end: The last step of the log: a stretch that holds at the last row is taken to hold up to it.

    Returns:
        First and last step of each stretch, in order.

    Example:
        >>> stretches(np.array([1, 2, 3, 8]), np.array([True, True, False, True]), 1, 10)
        ((1, 2), (8, 10))
    """
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    first, last = edges[::2], edges[1::2] - 1
    long = last - first + 1 >= least
    found = [(int(steps[a]), int(steps[b])) for a, b in zip(first[long], last[long], strict=True)]
    if found and len(flags) and flags[-1] and found[-1][1] == int(steps[-1]):
        found[-1] = (found[-1][0], max(end, int(steps[-1])))
    return tuple(found)


def entries(steps: np.ndarray, flags: np.ndarray, least: int, end: int) -> dict[int, tuple[tuple[int, int], ...]]:
    """The entries of a column for which a condition held for at least so many rows on end.

    Args:
        steps: Shape (rows,).
        flags: bool of shape (rows, entries).
        least: Rows that a stretch must have.
        end: The last step of the log.

    Returns:
        Place of the entry → its stretches.
    """
    likely = np.flatnonzero(flags.sum(axis=0) >= least)
    found = {int(i): stretches(steps, flags[:, i], least, end) for i in likely}
    return {i: spans for i, spans in found.items() if spans}


def within(steps: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Which steps lie in any of the stretches.

    Args:
        steps: Shape (rows,).
        spans: First and last step of each.

    Returns:
        bool of shape (rows,).
    """
    inside = np.zeros(len(steps), dtype=bool)
    for first, last in spans:
        inside |= (steps >= first) & (steps <= last)
    return inside


def end_of(run: Log) -> int:
    """The last step of the log.

    Args:
        run: The log.

    Returns:
        The step; 0 where there is none.
    """
    return int(run.steps[-1]) if len(run.steps) else 0


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


def groups(run: Log) -> list[Mapping[str, Any]]:
    """The optimizer's parameter groups as they were when the run began.

    Args:
        run: The log.

    Returns:
        One mapping per group; empty where it is not known.
    """
    return list(run.manifest.get("optimizer", {}).get("groups", ()))


def fallen(run: Log) -> float:
    """By what share of its start the loss has fallen: 1 − median of the last tenth / median of the first steps.

    Args:
        run: The log.

    Returns:
        1: to zero; 0: not at all; negative: risen; NaN where the log cannot tell.
    """
    if "loss" not in run.columns:
        return float("nan")
    loss = rows(run, "loss").values
    loss = loss[np.isfinite(loss)]
    if len(loss) < 10:
        return float("nan")
    first, last = float(np.median(loss[: max(3, len(loss) // 100)])), float(np.median(loss[-max(5, len(loss) // 10) :]))
    return (first - last) / abs(first) if first else float("nan")


def suspect(name: str, prior: float, *ratios: float, why: str = "", remedies: Sequence[Remedy] = ()) -> Suspect:
    """A cause whose evidence is weighed at once.

    Args:
        name: A key of `CAUSES`.
        prior: Confidence before the evidence: how often the symptom has this cause.
        *ratios: Of each piece of evidence, how much likelier it is under the cause than without it; 1 where unknown.
        why: What was observed.
        remedies: What would help, best first.

    Returns:
        The suspect.

    Example:
        >>> suspect("label_noise", 0.5, 3.0).confidence
        0.75
    """
    made = Suspect(name, prior, tuple(remedies))
    made.odds *= float(np.prod(ratios))
    made.why.extend([why] if why else [])
    return made


def weighed(suspects: Iterable[Suspect | None]) -> tuple[Cause, ...]:
    """Causes, most likely first.

    Args:
        suspects: In any order; None is passed over.

    Returns:
        As `ranked` gives them.
    """
    return ranked(*(one for one in suspects if one is not None))
