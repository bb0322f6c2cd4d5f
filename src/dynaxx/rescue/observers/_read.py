"""Reading for the peers' rules: columns as float64, and what their statistics are in terms of ours."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dynaxx.core.findings import Log
from dynaxx.rescue.observer import Fired

GAUSSIAN = float(np.sqrt(2 / np.pi))
"""mean|x| / rms(x) of a centred Gaussian. Logs hold norms, peers' rules speak of mean magnitudes; their thresholds lie
decades apart, so that the factor decides nothing."""
Read = tuple[np.ndarray, np.ndarray] | None
"""Steps and values of a column; None where the log does not hold it."""
PERIOD = 30
"""Steps between the checks of tools that check now and then."""


def column(log: Log, name: str) -> Read:
    """Steps and values of a column.

    Args:
        log: The log.
        name: The column.

    Returns:
        int64 of shape (rows,), and float64 of shape (rows,) or (rows, entries); None where it is absent.
    """
    base = name.removesuffix(".total").removesuffix(".max")
    if name not in log.columns and base not in log.columns:
        return None
    series = log[name]
    return np.asarray(series.steps), np.asarray(series.values, dtype=np.float64)


def magnitude(log: Log, name: str) -> Read:
    """Mean magnitude of a layer's entries, from the norm: √(2/π) ‖x‖ / √n.

    Args:
        log: The log.
        name: A column of norms by layer.

    Returns:
        Steps, and float64 of shape (rows, layers).
    """
    found = column(log, name)
    if found is None:
        return None
    sizes = {layer["name"]: layer["numel"] for layer in log.manifest["model"]["layers"]}
    numel = np.array([sizes.get(label, 1) for label in log[name].labels], dtype=np.float64)
    return found[0], GAUSSIAN * found[1] / np.sqrt(numel)


def rule(found: Read, judge: Callable[[Any], Any], cause: str = "") -> Fired | str:
    """Ask a rule.

    Args:
        found: Steps and values that it reads; None where the column is absent.
        judge: Values → bool of shape (rows,).
        cause: The cause that its name states.

    Returns:
        Where it fires, or the reason why it cannot tell.
    """
    if found is None:
        return "the log does not hold what it reads"
    with np.errstate(all="ignore"):  # a dead run leaves zeros and infinities to divide by
        return Fired(steps=found[0], mask=judge(found[1]), cause=cause)


def some(judge: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
    """Whether any layer fulfils a condition.

    Args:
        judge: Values → bool, of shape (rows, layers).

    Returns:
        Values → bool of shape (rows,).
    """
    return lambda values: judge(values).any(axis=1)


def trailing(values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the values before each one.

    Args:
        values: float64 of shape (rows,).
        window: How many at most.

    Returns:
        Both, of shape (rows,); NaN for the first.
    """
    mean, sd = np.full(len(values), np.nan), np.full(len(values), np.nan)
    for i in range(1, len(values)):
        part = values[max(0, i - window) : i]
        mean[i], sd[i] = part.mean(), part.std(ddof=1) if len(part) > 1 else np.nan
    return mean, sd


def held(mask: np.ndarray, times: int) -> np.ndarray:
    """Where a mask has been true so many times in a row.

    Args:
        mask: bool of shape (rows,).
        times: At least 1.

    Returns:
        bool of shape (rows,).
    """
    run = np.zeros(len(mask), dtype=int)
    for i, true in enumerate(mask):
        run[i] = (run[i - 1] if i else 0) + 1 if true else 0
    return run >= times


def every(found: Read, period: int) -> Read:
    """The last row of each period.

    Args:
        found: Steps and values.
        period: Steps.

    Returns:
        Steps and values.
    """
    if found is None:
        return None
    steps, values = found
    last = np.flatnonzero(np.diff(steps // period, append=steps[-1] // period + 1)) if len(steps) else steps
    return steps[last], values[last]
