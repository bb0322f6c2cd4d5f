"""SGD: torch's, with momentum, and weight decay on matrices and kernels only."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dynaxx.errors import BadInput
from dynaxx.optim import _options as options
from dynaxx.optim._groups import group_of
from dynaxx.optim._method import Elementwise


class SGD(Elementwise, torch.optim.SGD):
    """Stochastic gradient descent with heavy-ball or Nesterov momentum: torch's own arithmetic.

    B ← μ B + (G + λ W), W ← W − η B; with Nesterov, W ← W − η (G + λ W + μ B).

    Args:
        params: Parameters, named parameters or groups.
        lr: η; torch's 1e-3.
        momentum: μ; torch's 0.
        weight_decay: λ, through the gradient; torch's 0. `for_model` gives it to matrices and kernels only.
        nesterov: Look ahead along the momentum.
        fused: One kernel for the whole step, where there is one; None: torch's choice.

    Raises:
        BadInput: An option breaks its rule, or Nesterov's form is asked for without momentum.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> weight.grad = torch.tensor([2.0])
        >>> SGD([weight], lr=0.25).step()
        >>> weight.detach()
        tensor([0.5000])
    """

    memory = "1 × parameters with momentum, else 0"
    weight_decay: ClassVar[float] = 0.0
    rules: ClassVar[dict[str, options.Rule]] = {
        "lr": options.NOT_NEGATIVE,
        "momentum": options.SHARE,
        "weight_decay": options.NOT_NEGATIVE,
        "nesterov": options.FLAG,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = weight_decay,
        *,
        nesterov: bool = False,
        fused: bool | None = None,
    ) -> None:
        given = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        options.check_options("SGD", given, self.rules)
        if nesterov and momentum == 0:
            raise BadInput("SGD(nesterov=True) needs momentum above 0. Got momentum=0. Give 0.9.")
        torch.optim.SGD.__init__(
            self, params, lr, momentum, weight_decay=weight_decay, nesterov=nesterov, fused=fused
        )  # fmt: skip

    def _blank(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        if group["momentum"] == 0:
            return {}
        return {"momentum_buffer": torch.zeros_like(parameter, memory_format=torch.preserve_format)}

    @torch.no_grad()
    def moments(self, parameter: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The first moment, (1 − μ) B: torch's buffer is a sum.

        Args:
            parameter: One of the optimizer's.

        Returns:
            A copy, not corrected for the first 1/(1 − μ) steps, as nothing counts them; and None.
        """
        group, _ = group_of(self, parameter)
        buffer = self.state.get(parameter, {}).get("momentum_buffer")
        return (None if buffer is None else buffer.float() * (1 - group["momentum"])), None

    @torch.no_grad()
    def adopt(
        self,
        parameter: Tensor,
        first: Tensor | None,
        second: Tensor | None,
        steps: int,
        gradients: Sequence[Tensor] | None = None,
    ) -> None:
        """Take over the first moment as the sum that it stands for, B = M / (1 − μ).

        Arguments are those of `Transportable.adopt`; the second moment and the steps are not used.
        """
        del second, steps
        group, _ = group_of(self, parameter)
        state = self._blank(parameter.detach(), group)
        if first is None and gradients:
            first = torch.stack(list(gradients)).mean(0)
        if first is None or not state:
            self.state.pop(parameter, None)
            return
        state["momentum_buffer"].copy_(first / (1 - group["momentum"]))
        self.state[parameter] = state
