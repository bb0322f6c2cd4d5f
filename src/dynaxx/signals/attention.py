"""Attention: the largest logit and the entropy of the weights, wherever the model calls torch's attention functions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage]

from dynaxx.core.contracts import ForwardSignal, FunctionObserver, Tap
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout, is_compiled
from dynaxx.core.records import Axis, Column, Cost, Measurement
from dynaxx.errors import NotApplicable
from dynaxx.numerics.attention import module_statistics, statistics


@dataclass(slots=True)
class _State:
    sites: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict[str, list[tuple[Tensor, Tensor]]])
    columns: tuple[Column, Column] | None = None


class Attention(ForwardSignal[_State]):
    """Of softmax(QKᵀ/√d): the largest logit, and the mean entropy −Σ p ln p of a query's weights, in nats.

    Growing logits precede divergence, entropy near zero is its mark (Zhai et al. 2023, Dehghani et al. 2023). Both are
    computed anew from the arguments of `scaled_dot_product_attention` and of `nn.MultiheadAttention` on a sample of
    examples and queries, so the largest logit is a lower bound. Not visible inside compiled graphs, nor in attention
    written out by hand.
    """

    at = Event.STEP_END
    cost = Cost()
    unit = "nat"

    def init(self, model: nn.Module, layout: Layout) -> _State:
        """No call seen yet."""
        del layout
        if is_compiled(model):
            raise NotApplicable("attention inside a compiled model cannot be seen; its logits are not measured.")
        return _State()

    def tap(self, state: _State, name: str, module: nn.Module) -> Tap | None:
        """No module: the functions are looked at."""
        del state, name, module
        return None

    def functions(self, state: _State) -> Mapping[Callable[..., Any], FunctionObserver]:
        """The fused attention function, and the one of `nn.MultiheadAttention`."""

        def observer(compute: Callable[..., tuple[Tensor, Tensor] | None]) -> FunctionObserver:
            def observe(site: str, owner: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                del output
                with _disable_current_modes():  # these products are no part of the model's operations (see `flops`)
                    found = compute(*args, **kwargs)
                if found is not None:
                    state.sites.setdefault(_label(site, owner), []).append(found)

            return observe

        return {
            functional.scaled_dot_product_attention: observer(statistics),
            functional.multi_head_attention_forward: observer(module_statistics),
        }

    def measure(self, state: _State, step: StepView) -> tuple[_State, Sequence[Measurement]]:
        """Largest and mean over the calls since the last measurement."""
        del step
        seen = {site: calls for site, calls in state.sites.items() if calls}
        if not seen:
            return state, ()
        if state.columns is None or (state.columns[0].axis or Axis(name="", labels=())).labels != tuple(seen):
            state.columns = _columns(tuple(seen))
        logits = torch.stack([torch.stack([c[0] for c in calls]).amax() for calls in seen.values()])
        entropy = torch.stack([torch.stack([c[1] for c in calls]).mean() for calls in seen.values()])
        for calls in state.sites.values():
            calls.clear()
        return state, (
            Measurement(column=state.columns[0], value=logits),
            Measurement(column=state.columns[1], value=entropy),
        )


def _label(site: str, owner: str) -> str:
    """The calling module's path, and which of its calls it is; the function's name would only repeat itself."""
    number = site.partition("#")[2]
    return (owner or "(model)") + (f"#{number}" if number else "")


def _columns(labels: tuple[str, ...]) -> tuple[Column, Column]:
    axis = Axis(name="attention", labels=labels)
    return (
        Column(
            name="attention.logit_max", axis=axis, reduce="max", about="largest attention logit in a sample of queries"
        ),
        Column(name="attention.entropy", axis=axis, unit="nat", about="mean entropy of a query's attention weights"),
    )
