"""Adam entry by entry with decoupled weight decay, for the parameters that a matrix method leaves over."""

import math
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from dynaxx.optim import _many as many
from dynaxx.optim._state import wide


def blank_moments(parameter: Tensor, device: torch.device | str) -> dict[str, Tensor]:
    """Both moments, nothing seen yet.

    Args:
        parameter: Gives shape and type.
        device: Where to make them; "meta" to count bytes.

    Returns:
        `step`, `exp_avg`, `exp_avg_sq`; the moments in float32 at least.
    """
    dtype = wide(parameter.dtype)
    count = torch.zeros((), dtype=torch.float32, device="meta" if str(device) == "meta" else "cpu")
    shape = parameter.shape
    return {
        "step": count,
        "exp_avg": torch.zeros(shape, dtype=dtype, device=device),
        "exp_avg_sq": torch.zeros(shape, dtype=dtype, device=device),
    }


def adam_step(
    parts: Iterable[tuple[Tensor, Tensor, dict[str, Tensor]]],
    options: Mapping[str, Any],
    betas: tuple[float, float],
    rate: float,
) -> None:
    """One step: w ← (1 − ηλ) w − η m̂ / (√v̂ + ε), as in Loshchilov and Hutter 2019.

    Args:
        parts: Parameter, gradient and state from `blank_moments`.
        options: Holds `eps` and `weight_decay`.
        betas: Decay rates of the two moments.
        rate: The learning rate η.
    """

    def kind(part: tuple[Tensor, Tensor, dict[str, Tensor]]) -> tuple[float, str]:
        return float(part[2]["step"]), f"{part[2]['exp_avg'].dtype} {part[0].device}"

    for (before, _), alike in groupby(sorted(parts, key=kind), key=kind):
        parameters, gradients, states = map(list, zip(*alike, strict=True))
        step = before + 1
        first = [state["exp_avg"] for state in states]
        second = [state["exp_avg_sq"] for state in states]
        gradients = [g.to(m.dtype) for g, m in zip(gradients, first, strict=True)]
        many.lerp_(first, gradients, 1 - betas[0])
        many.mul_(second, betas[1])
        many.addcmul_(second, gradients, gradients, 1 - betas[1])
        divisors = many.sqrt(second)
        many.div_(divisors, math.sqrt(1 - betas[1] ** step))
        many.add_(divisors, options["eps"])
        if options["weight_decay"]:
            many.mul_(parameters, 1 - rate * options["weight_decay"])
        updates = many.div(first, divisors)
        many.add_(parameters, updates, alpha=-rate / (1 - betas[0] ** step))
        for state in states:
            state["step"].fill_(step)
