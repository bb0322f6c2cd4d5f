"""The baseline that a language model must beat: a table of how often each byte follows each other one."""

import math

import numpy as np

from dynaxx.tasks.stdlib_lm import StdlibLM


def bits_per_byte(task: StdlibLM, delta: float = 0.1) -> float:
    """Bits per byte of a smoothed bigram model on the task's validation windows, where the transformer is judged too.

    p(next | previous) = (count(previous, next) + δ) / (count(previous) + 256 δ), counted on the training text.

    Args:
        task: Gives the training text and the validation windows.
        delta: What is added to each count, above 0.

    Returns:
        The mean of −log₂ p(next | previous) over the predicted bytes.
    """
    table = log_probabilities(task.text.train.numpy(), delta)
    total = count = 0.0
    for inputs, targets in task.batches("validation", seed=0):
        total -= float(table[inputs.numpy(), targets.numpy()].sum())
        count += task.weight((inputs, targets))
    return total / (count * math.log(2))


def log_probabilities(data: np.ndarray, delta: float) -> np.ndarray:
    """The natural logarithm of the smoothed table.

    Args:
        data: The text, uint8 of shape (bytes,).
        delta: What is added to each count.

    Returns:
        float64 of shape (256, 256); row: previous byte, column: next byte.
    """
    pairs = data[:-1].astype(np.uint16) * 256 + data[1:]
    counts = np.bincount(pairs, minlength=256 * 256).reshape(256, 256) + delta
    return np.log(counts / counts.sum(axis=1, keepdims=True))
