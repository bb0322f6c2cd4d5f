"""The learning-rate curve of the built-in tasks: linear warm-up, then half a cosine."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: Optimizer, *, steps: int, warmup: int, final: float = 0.0) -> LambdaLR:
    """Rise over the first steps from lr / warmup to lr, then fall along half a cosine to final · lr.

    Args:
        optimizer: Its groups' learning rates are the peak.
        steps: Planned optimizer steps; the factor stays at `final` after them.
        warmup: Steps of the rise, below `steps`.
        final: The last factor, in [0, 1].

    Returns:
        A scheduler to step once per optimizer step.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)
