"""A noisy Markov chain of order two, whose entropy is known: what the suite's LSTM learns."""

import math

import torch

SYMBOLS = 8
LENGTH = 16
"""Predictions in a sequence; the first two symbols are uniform."""
FAITHFUL = 0.85
"""Probability of the symbol that the table says; else it is uniform over all."""


def sequences(count: int, seed: int) -> torch.Tensor:
    """Sequences of the chain x_t = table[x_{t−2}, x_{t−1}], faithful in a share of the steps.

    Args:
        count: How many.
        seed: Of the draw; the table is always the same.

    Returns:
        int64 of shape (count, LENGTH + 1).
    """
    table = torch.randint(SYMBOLS, (SYMBOLS, SYMBOLS), generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randint(SYMBOLS, (count, LENGTH + 1), generator=random)
    faithful = torch.rand(count, LENGTH + 1, generator=random) < FAITHFUL
    for t in range(2, LENGTH + 1):
        drawn[:, t] = torch.where(faithful[:, t], table[drawn[:, t - 2], drawn[:, t - 1]], drawn[:, t])
    return drawn


def entropy() -> float:
    """The loss of the perfect predictor per position, in nats.

    The second symbol is uniform; each further one has probability p = 0.85 + 0.15/8 on one value and 0.15/8 on the
    others.

    Returns:
        The floor of the mean cross-entropy.
    """
    rest = (1 - FAITHFUL) / SYMBOLS
    right = FAITHFUL + rest
    known = -right * math.log(right) - (SYMBOLS - 1) * rest * math.log(rest)
    return (math.log(SYMBOLS) + (LENGTH - 1) * known) / LENGTH
