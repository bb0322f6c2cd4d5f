"""An outer Nesterov step over any optimizer, every so many of its steps; Lookahead is its special case."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from dynaxx.core.arguments import at_least
from dynaxx.core.parameters import local, own_parameters
from dynaxx.errors import BadInput

_SLOW, _MOMENTUM = "slow_weights", "outer_momentum"


class OuterNesterov(Optimizer):
    """Outer Nesterov momentum: every k steps d = s − w, m ← μ m + d, s ← s − α (d + μ m), w ← s.

    Here s are the slow weights, w those that the inner optimizer has come to, m the outer momentum. Lookahead is μ = 0:
    s ← s + α (w − s). Groups and state are the inner optimizer's own, so schedulers, gradient scalers and checkpoints
    take this one in its place; s and m are in float32 at least. A parameter joins with its first gradient. A step that
    left the weights as they were counts as any other.

    Args:
        inner: The optimizer that takes the steps; use it no longer itself.
        every: k; 32 is the number of GPA (2025), DiLoCo's is 50 to 500.
        rate: α, 0.7 in DiLoCo; Lookahead's is 0.5.
        momentum: μ, 0.9 in DiLoCo.

    Raises:
        BadInput: A number is out of its range.

    Example:
        `optimizer = OuterNesterov(torch.optim.AdamW(model.parameters()), every=32)`

    Reference: Zhang et al. 2019 (Lookahead); Douillard et al. 2023 (DiLoCo).
    """

    def __init__(self, inner: Optimizer, *, every: int = 32, rate: float = 0.7, momentum: float = 0.9) -> None:
        if not isinstance(inner, Optimizer):
            raise BadInput(f"OuterNesterov(inner=...) must be a torch.optim.Optimizer. Got {type(inner).__name__}.")
        at_least("OuterNesterov", "every", every, 1)
        if not 0 < rate <= 2:
            raise BadInput(f"OuterNesterov(rate=...) must be above 0 and at most 2. Got {rate!r}.")
        if not 0 <= momentum < 1:
            raise BadInput(f"OuterNesterov(momentum=...) must be at least 0 and below 1. Got {momentum!r}.")
        super().__init__(inner.param_groups, {})
        self.inner = inner
        self.defaults = inner.defaults
        self._every, self._rate, self._momentum = every, rate, momentum
        self._share()
        for group in self.param_groups:
            group.setdefault("outer_step", 0)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The inner optimizer's step, and the outer one where it is due.

        Args:
            closure: Handed on.

        Returns:
            What the inner optimizer returned.
        """
        # Kept apart until the inner optimizer has made its own state: most ask whether there is any.
        known = {p for p in own_parameters(self) if _SLOW in self.state.get(p, {})}
        first = {p: _wide(p) for p in own_parameters(self) if p not in known and (closure or p.grad is not None)}
        found = self.inner.step(closure) if closure is not None else self.inner.step()
        for parameter, slow in first.items():
            if parameter.grad is not None:
                self.state[parameter][_SLOW] = slow
        for group in self.param_groups:
            group["outer_step"] += 1
            if group["outer_step"] % self._every == 0:
                self._outer([p for p in group["params"] if _SLOW in self.state.get(p, {})])
        return found

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, to the inner optimizer too.

        Args:
            param_group: As torch's optimizers take it.
        """
        inner = self.__dict__.get("inner")
        if inner is None:  # torch's constructor
            super().add_param_group(param_group)
        else:
            inner.add_param_group(param_group)
            inner.param_groups[-1]["outer_step"] = 0

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, slow weights and outer momentum within each parameter's state."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; slow weights keep their own type, and share no memory with it.

        Args:
            state_dict: What `state_dict` returned.
        """
        self.inner.load_state_dict(deepcopy(state_dict))  # torch keeps what it need not cast, and trains on it
        self._share()
        for index, parameter in enumerate(own_parameters(self)):
            saved = cast(Mapping[Any, Any], state_dict["state"]).get(index, {})
            for key in {_SLOW, _MOMENTUM} & saved.keys():
                self.state[parameter][key] = saved[key].to(parameter.device, copy=True)

    def _share(self) -> None:
        self.state, self.param_groups = self.inner.state, self.inner.param_groups

    @torch.no_grad()
    def _outer(self, parameters: list[Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            slow, fast = local(state[_SLOW]), local(parameter.detach())
            difference = slow - fast
            if self._momentum:
                if _MOMENTUM not in state:
                    state[_MOMENTUM] = torch.zeros_like(state[_SLOW])
                momentum = local(state[_MOMENTUM]).mul_(self._momentum).add_(difference)
                difference.add_(momentum, alpha=self._momentum)
            slow.sub_(difference, alpha=self._rate)
            fast.copy_(slow)


def _wide(parameter: Tensor) -> Tensor:
    value = parameter.detach()
    return value.to(torch.promote_types(value.dtype, torch.float32), copy=True)
