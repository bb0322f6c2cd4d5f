"""What the log says of the data that went into the model."""

import numpy as np

from dynaxx.core.findings import Log
from dynaxx.detectors._facts import checked
from dynaxx.detectors._read import rows


def scale_of_inputs(run: Log) -> float:
    """Root mean square of the model's input: the median over the measured batches.

    Args:
        run: The log.

    Returns:
        √(mean² + std²); NaN where inputs are not numbers (tokens), or were not measured.
    """
    if {"inputs.mean", "inputs.std"} <= set(run.columns):
        mean, std = rows(run, "inputs.mean").values, rows(run, "inputs.std").values
        size = np.sqrt(mean**2 + std**2) if len(mean) == len(std) else std
        size = size[np.isfinite(size)]
        return float(np.median(size)) if len(size) else float("nan")
    return float(checked(run, "input_statistics").get("rms", float("nan")))


def few_batches(run: Log) -> bool:
    """Whether most of the measured batches are repeats of others: what the loss shows is then theirs.

    Args:
        run: The log.

    Returns:
        True where fewer than half are distinct over the first passes; False where it was not measured.
    """
    if "inputs.fingerprint" not in run.columns:
        return False
    marks = rows(run, "inputs.fingerprint").values[:30]
    marks = marks[np.isfinite(marks)]
    return len(marks) >= 16 and len(np.unique(marks)) <= len(marks) / 2
