"""LAMB: Adam with the update of each tensor made as long as the tensor itself; for large batches."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dynaxx.optim import _options as options
from dynaxx.optim._state import wide
from dynaxx.optim._trust import TrustRatio, adapts, norm, trust_ratio


class Lamb(TrustRatio):
    """w ← w − η τ u with u = m̂ / (√v̂ + ε) + λ w and τ = min(cap, ‖w‖ / ‖u‖), 1 where a norm is 0.

    m̂ and v̂ are Adam's bias-corrected moments (You et al. 2020, whose φ is the identity here, with a cap on the ratio
    instead). Made for transformers at batches of thousands. Vectors have τ = 1. Tuned Adam reached the same results at
    those batches (Nado et al. 2021): expect no gain over a tuned baseline.

    Args:
        params: Parameters, named parameters or groups.
        lr: η: about the share by which a tensor turns in a step.
        betas: Decay rates of the moments; the paper's.
        eps: ε; the paper's.
        weight_decay: λ, within the trust ratio; the paper's 0.01. `for_model` gives it to matrices and kernels only.
        cap: The largest τ; 10 is the bound of the authors' experiments on the norm of the weights.
        adapt: False in a group: τ = 1 for all of its tensors.

    Raises:
        BadInput: An option breaks its rule, or a parameter is complex.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> weight.grad = torch.tensor([[1.0, 1.0]])
        >>> Lamb([weight], lr=0.1, weight_decay=0.0).step()    # u = (1, 1), τ = 5 / √2
        >>> weight.detach()
        tensor([[2.6464, 3.6464]])
    """

    memory = "2 × parameters"
    weight_decay: ClassVar[float] = 0.01
    rules: ClassVar[dict[str, options.Rule]] = {
        "lr": options.NOT_NEGATIVE,
        "betas": options.SHARES,
        "eps": options.POSITIVE,
        "weight_decay": options.NOT_NEGATIVE,
        "cap": ("a number above 0", lambda v: isinstance(v, int | float) and not math.isnan(v) and v > 0),
        "adapt": options.FLAG,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = weight_decay,
        *,
        cap: float = 10.0,
        adapt: bool = True,
    ) -> None:
        given = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "cap": cap, "adapt": adapt}
        super().__init__(params, given)

    def _blank(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        del group
        moment = torch.zeros_like(parameter, dtype=wide(parameter.dtype))
        count = torch.zeros((), dtype=torch.float32, device="meta" if parameter.is_meta else "cpu")
        return {"step": count, "exp_avg": moment, "exp_avg_sq": moment.clone()}

    def _update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Mapping[str, Any]) -> None:
        first, second, (beta1, beta2) = state["exp_avg"], state["exp_avg_sq"], group["betas"]
        state["step"] += 1
        steps = float(state["step"])  # on the host
        gradient = gradient.to(first.dtype)
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        divisor = second.sqrt().div_(math.sqrt(1 - beta2**steps)).add_(group["eps"])
        update = first.div(divisor).div_(1 - beta1**steps)
        if group["weight_decay"]:
            update.add_(parameter, alpha=group["weight_decay"])
        if adapts(parameter, group):
            update.mul_(trust_ratio(norm(parameter), norm(update), group["cap"]))
        parameter.sub_(update.mul_(group["lr"]))
