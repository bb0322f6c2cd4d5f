"""LARS: SGD with momentum, the rate of each tensor in proportion to its norm over its gradient's; for large batches."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dynaxx.optim import _options as options
from dynaxx.optim._state import wide
from dynaxx.optim._trust import TrustRatio, adapts, norm, trust_ratio


class Lars(TrustRatio):
    """B ← μ B + τ (g + λ w), w ← w − η B with τ = min(cap, κ ‖w‖ / (‖g‖ + λ ‖w‖)), 1 where a norm is 0.

    Layer-wise adaptive rate scaling (You, Gitman and Ginsburg 2017), made for convolutional nets at batches of
    thousands. Vectors have τ = 1. Tuned momentum SGD reached the same results at those batches (Nado et al. 2021):
    expect no gain over a tuned baseline.

    Args:
        params: Parameters, named parameters or groups.
        lr: η; as κ is small, rates of 1 to 30 are usual. Vectors take them whole: give their group its own.
        momentum: μ.
        weight_decay: λ, through the gradient; the paper's 5e-4. `for_model` gives it to matrices and kernels only.
        trust: κ; the paper's 1e-3.
        cap: The largest τ. 1 keeps every tensor's rate at η or below, as LARC does; `math.inf` is the paper's rule.
        adapt: False in a group: τ = 1 for all of its tensors.

    Raises:
        BadInput: An option breaks its rule, or a parameter is complex.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> weight.grad = torch.tensor([[0.0, 2.0]])
        >>> Lars([weight], lr=1.0, weight_decay=0.0, trust=0.1).step()    # τ = 0.1 · 5 / 2
        >>> weight.detach()
        tensor([[3.0000, 3.5000]])
    """

    memory = "1 × parameters"
    weight_decay: ClassVar[float] = 5e-4
    rules: ClassVar[dict[str, options.Rule]] = {
        "lr": options.NOT_NEGATIVE,
        "momentum": options.SHARE,
        "weight_decay": options.NOT_NEGATIVE,
        "trust": options.POSITIVE,
        "cap": ("a number above 0", lambda v: isinstance(v, int | float) and not math.isnan(v) and v > 0),
        "adapt": options.FLAG,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        weight_decay: float = weight_decay,
        *,
        trust: float = 1e-3,
        cap: float = 1.0,
        adapt: bool = True,
    ) -> None:
        given = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "cap": cap}
        super().__init__(params, {**given, "adapt": adapt})

    def _blank(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        del group
        return {"momentum_buffer": torch.zeros_like(parameter, dtype=wide(parameter.dtype))}

    def _update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Mapping[str, Any]) -> None:
        buffer, decay = state["momentum_buffer"], group["weight_decay"]
        update = gradient.to(buffer.dtype)
        if decay:
            update = update.add(parameter, alpha=decay)
        if adapts(parameter, group):
            weight = norm(parameter)
            update = update * trust_ratio(group["trust"] * weight, norm(gradient) + decay * weight, group["cap"])
        buffer.mul_(group["momentum"]).add_(update)
        parameter.sub_(buffer * group["lr"])
