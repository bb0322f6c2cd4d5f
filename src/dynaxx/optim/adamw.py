"""AdamW: torch's, with weight decay on matrices and kernels only."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dynaxx.optim import _options as options
from dynaxx.optim._groups import group_of
from dynaxx.optim._method import Elementwise
from dynaxx.optim._transport import completed


class AdamW(Elementwise, torch.optim.AdamW):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): torch's own arithmetic.

    W ← (1 − ηλ) W − η M̂ / (√V̂ + ε).

    Args:
        params: Parameters, named parameters or groups.
        lr: η; torch's 1e-3.
        betas: β₁ and β₂ of the two moments; torch's 0.9 and 0.999.
        eps: ε, outside the root and behind the bias correction; torch's 1e-8.
        weight_decay: λ, decoupled; torch's 0.01. `for_model` gives it to matrices and kernels only.
        fused: One kernel for the whole step, where there is one; None: torch's choice. On a CPU it takes a third of
            the time.

    Raises:
        BadInput: An option breaks its rule.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> weight.grad = torch.tensor([5.0])
        >>> AdamW([weight], lr=0.25, weight_decay=0.0).step()
        >>> weight.detach()
        tensor([0.7500])
    """

    memory = "2 × parameters"
    weight_decay: ClassVar[float] = 0.01
    rules: ClassVar[dict[str, options.Rule]] = {
        "lr": options.NOT_NEGATIVE,
        "betas": options.SHARES,
        "eps": options.NOT_NEGATIVE,
        "weight_decay": options.NOT_NEGATIVE,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = weight_decay,
        *,
        fused: bool | None = None,
    ) -> None:
        given = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        options.check_options("AdamW", given, self.rules)
        torch.optim.AdamW.__init__(self, params, lr, betas, eps, weight_decay, fused=fused)
        # Not by overriding `step`: torch may have put the hooks around its own too, and they would run twice.
        self.register_step_pre_hook(_refuse_sparse)

    def _blank(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        device = parameter.device if group["fused"] or parameter.is_meta else torch.device("cpu")
        # torch counts in float32 in its fused kernel, else in the default type where that is float64.
        wide = torch.get_default_dtype() == torch.float64 and not group["fused"]
        return {
            "step": torch.zeros((), dtype=torch.float64 if wide else torch.float32, device=device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }

    @torch.no_grad()
    def moments(self, parameter: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Both moments.

        Args:
            parameter: One of the optimizer's.

        Returns:
            Bias-corrected copies; None before the first update.
        """
        group, _ = group_of(self, parameter)
        state = self.state.get(parameter)
        if not state:
            return None, None
        beta1, beta2 = group["betas"]
        steps = float(state["step"])
        first, second = (torch.as_tensor(state[key]).float() for key in ("exp_avg", "exp_avg_sq"))
        return first / (1 - beta1**steps), second / (1 - beta2**steps)

    @torch.no_grad()
    def adopt(
        self,
        parameter: Tensor,
        first: Tensor | None,
        second: Tensor | None,
        steps: int,
        gradients: Sequence[Tensor] | None = None,
    ) -> None:
        """Take over moments; arguments as in `Transportable.adopt`."""
        group, _ = group_of(self, parameter)
        first, second = completed("AdamW", first, second, steps, gradients)
        beta1, beta2 = group["betas"]
        state = self._blank(parameter.detach(), group)
        state["step"].fill_(steps)
        state["exp_avg"].copy_(first * (1 - beta1**steps))
        state["exp_avg_sq"].copy_(second * (1 - beta2**steps))
        self.state[parameter] = state


def _refuse_sparse(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    del args, kwargs
    for group in optimizer.param_groups:
        for _ in options.dense_gradients("AdamW", group):
            pass
