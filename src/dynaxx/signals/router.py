"""Routers of mixtures of experts: how unevenly tokens are spread, and how undecided the router is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from dynaxx.core.contracts import ForwardSignal, Tap
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout, bare_name
from dynaxx.core.records import Axis, Column, Cost, Measurement
from dynaxx.core.task import first_tensor
from dynaxx.errors import NotApplicable

_NAMES = frozenset({"router", "gate", "gating", "gate_network"})


class RouterTap(Tap):
    """Adds up, over tokens, the router's first choices and its entropy.

    Args:
        experts: Number of experts.
        device: Where the buffers are.
    """

    def __init__(self, experts: int, device: torch.device) -> None:
        self.chosen = torch.zeros(experts, device=device)
        self.entropy = torch.zeros((), device=device)

    def __call__(self, inputs: tuple[Any, ...], output: Any) -> None:
        """See the logits of shape (..., experts)."""
        del inputs
        logits = first_tensor(output)
        if logits is None or not logits.is_floating_point() or logits.shape[-1] != self.chosen.numel():
            return
        flat = logits.detach().reshape(-1, self.chosen.numel()).float()
        first = torch.zeros_like(flat).scatter_(1, flat.argmax(1, keepdim=True), 1.0)
        self.chosen.add_(first.sum(0))
        self.entropy.add_(torch.special.entr(torch.softmax(flat, dim=1)).sum())


@dataclass(slots=True)
class _State:
    routers: frozenset[str]
    device: torch.device
    taps: dict[str, RouterTap] = field(default_factory=dict[str, RouterTap])
    columns: tuple[Column, Column] | None = None


class Router(ForwardSignal[_State]):
    """Load of the busiest expert, E·max_e f_e with f_e the share of tokens whose first choice is e, and router entropy.

    Load 1 is perfect balance, E is collapse on one expert. Entropy is that of softmax(logits), mean over tokens, in
    nats. A router is a linear layer named router, gate, gating or gate_network beside a module named experts.
    """

    at = Event.STEP_END
    cost = Cost()

    def init(self, model: nn.Module, layout: Layout) -> _State:
        """Not applicable without a router."""
        routers = frozenset(
            bare_name(name) for name, module in model.named_modules() if _is_router(name, module, model)
        )
        if not routers:
            raise NotApplicable(
                f"no linear layer named {', '.join(sorted(_NAMES))} beside a module named experts: the model is not a "
                "mixture of experts, or its router cannot be told by name."
            )
        return _State(routers=routers, device=layout.device)

    def tap(self, state: _State, name: str, module: nn.Module) -> Tap | None:
        """A tap for each router."""
        if name not in state.routers:
            return None
        state.taps[name] = RouterTap(int(cast(Any, module).out_features), state.device)
        return state.taps[name]

    def measure(self, state: _State, step: StepView) -> tuple[_State, Sequence[Measurement]]:
        """Read the buffers of the forwards since the last measurement."""
        del step
        if state.columns is None:
            axis = Axis(name="router", labels=tuple(state.taps))
            state.columns = (
                Column(name="router.load_max", axis=axis, reduce="max", about="busiest expert's load; 1 is balance"),
                Column(name="router.entropy", axis=axis, unit="nat", about="entropy of the router, mean over tokens"),
            )
        loads: list[Tensor] = []
        entropies: list[Tensor] = []
        for tap in state.taps.values():
            tokens = tap.chosen.sum()
            loads.append(tap.chosen.max() * tap.chosen.numel() / tokens)
            entropies.append(tap.entropy / tokens)
            tap.chosen.zero_()
            tap.entropy.zero_()
        values = (torch.stack(loads), torch.stack(entropies))
        return state, [Measurement(column=c, value=v) for c, v in zip(state.columns, values, strict=True)]


def _is_router(name: str, module: nn.Module, model: nn.Module) -> bool:
    parent, _, last = name.rpartition(".")
    if last not in _NAMES or not isinstance(getattr(module, "out_features", None), int):
        return False
    return any(child == "experts" for child, _ in model.get_submodule(parent).named_children())
