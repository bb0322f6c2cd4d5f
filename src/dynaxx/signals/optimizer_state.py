"""What the optimizer holds: step sizes it takes, momentum against second moments, where ε rules, age of its memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, Need, StepView
from dynaxx.core.parameters import Layout, local, widest
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.numerics.reductions import count, layer_norms, layer_shares, layer_sums, update_norms


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    step: Column
    ratio: Column
    epsilon: Column
    age: Column


class OptimizerState(Signal[_Columns]):
    """Of any optimizer the effective step ‖Δθ_l‖/‖g_l‖; of the Adam family more, by layer l, from its moments m and v.

    The gradient g is the one that the optimizer used, so clipped where the loop clips.

    - momentum ratio ‖m̂‖ / ‖√v̂‖, m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ): 1 for a steady gradient, near 0 for pure noise;
    - share of coordinates with √v̂ < ε, where the step is no longer normalised;
    - age of the preconditioner, the mean age in steps of the gradients in v: β₂/(1−β₂) − t·β₂ᵗ/(1−β₂ᵗ).
    """

    at = Event.STEP_END
    needs = frozenset({Need.UPDATE})
    cost = Cost(sweeps=6.0)  # norms of update, gradient and m; the sum of v, its comparison and that one's sum
    unit = "learning rate"

    def init(self, model: nn.Module, layout: Layout) -> _Columns:
        """The columns, one entry per layer."""
        del model

        def column(suffix: str, unit: str, about: str, mean: bool = False) -> Column:
            name = f"optimizer_state.{suffix}"
            return Column(name=name, axis=layout.axis, unit=unit, about=about, reduce="mean" if mean else "none")

        return _Columns(
            step=column("effective_step", self.unit, "norm of the update over norm of the gradient it was made from"),
            ratio=column("momentum_ratio", "1", "‖m̂‖ / ‖√v̂‖ of Adam's moments"),
            epsilon=column("epsilon_dominated", "1", "fraction of coordinates with √v̂ < ε", mean=True),
            age=column("age", "steps", "mean age of the gradients in the second moments", mean=True),
        )

    def measure(self, state: _Columns, step: StepView) -> tuple[_Columns, Sequence[Measurement]]:
        """Norms and counts; what Adam and RMSprop do not have is left out."""
        used = layer_norms(step.gradients, step.layout)  # a fused optimizer under a scaler has unscaled them by now
        values = [Measurement(column=state.step, value=update_norms(step) / used)]
        groups = {id(p): group for group in step.optimizer.param_groups for p in group["params"]}
        moments = [_moments(step.optimizer.state.get(p, {}), groups.get(id(p), {})) for p in step.layout.parameters]
        if all(m is None for m in moments):
            return state, values
        layout = step.layout
        held = [0.0 if m is None else float(m.second.numel()) for m in moments]
        share = layer_shares(held, layout)  # ranks differ in what they hold: never kept from step to step
        under = [0.0 if m is None else count(m.second, "under", m.epsilon**2 * m.correction2) for m in moments]
        ages = [0.0 if m is None else m.age * n for m, n in zip(moments, held, strict=True)]
        values.append(Measurement(column=state.epsilon, value=layer_shares(under, layout) / share))
        values.append(Measurement(column=state.age, value=layer_shares(ages, layout) / share))
        if any(m is not None and m.first is not None for m in moments):
            first = [0.0 if m is None or m.first is None else _square(m.first) / m.correction1**2 for m in moments]
            second = [0.0 if m is None else _sum(m.second) / m.correction2 for m in moments]
            ratio = (layer_sums(first, layout) / layer_sums(second, layout)).sqrt()
            values.append(Measurement(column=state.ratio, value=ratio))
        return state, values


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moments:
    first: Tensor | None
    second: Tensor
    correction1: Tensor | float
    correction2: Tensor | float
    epsilon: float
    age: Tensor


def _moments(state: dict[str, Any], group: dict[str, Any]) -> _Moments | None:
    """Adam's or RMSprop's moments of one parameter; the step count stays a tensor, so that nothing waits for it."""
    if {"exp_avg", "exp_avg_sq", "step"} <= state.keys() and {"betas", "eps"} <= group.keys():
        beta1, beta2 = group["betas"]
        t = _count(state["step"])
        return _Moments(
            first=_real(local(state["exp_avg"])),
            second=_real(local(state.get("max_exp_avg_sq", state["exp_avg_sq"]))),
            correction1=1 - beta1**t,
            correction2=1 - beta2**t,
            epsilon=group["eps"],
            age=_age(beta2, t),
        )
    if {"square_avg", "step"} <= state.keys() and {"alpha", "eps"} <= group.keys():
        return _Moments(
            first=None,
            second=_real(local(state["square_avg"])),
            correction1=1.0,
            correction2=1.0,  # RMSprop does not correct its bias
            epsilon=group["eps"],
            age=_age(group["alpha"], _count(state["step"])),
        )
    return None


def _count(step: Tensor | float) -> Tensor:
    """A step count in float64: 1 − 0.999¹ in float32 is off by 1e-5, and the age at t = 1 by more than itself."""
    t = torch.as_tensor(step)
    return t.to(widest(t.device))


def _age(beta: Tensor | float, t: Tensor) -> Tensor:
    power = beta**t
    return beta / (1 - beta) - t * power / (1 - power)


def _real(tensor: Tensor) -> Tensor:
    """Complex moments as pairs: the Adam family treats real and imaginary parts each on its own."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _sum(tensor: Tensor) -> Tensor:
    return tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))


def _square(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32)).square()
