"""Learning rate of every parameter group, and the actuator's factor in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout, widest
from dynaxx.core.records import Axis, Column, Cost, Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    rates: Column
    factor: Column


class LearningRate(Signal[_Columns]):
    """η of each parameter group as used in the step: the loop's own schedule times the actuator's factor.

    Groups that are added later get entries of their own from then on. `lr.factor` has rows for the steps in which the
    actuator's factor is not 1.
    """

    at = Event.STEP_END
    every_step = True
    cost = Cost()

    def init(self, model: nn.Module, layout: Layout) -> _Columns:
        """The columns for one group; they grow with the optimizer's groups."""
        del model, layout
        return _Columns(
            rates=_rates(1),
            factor=Column(name="lr.factor", dtype="float64", about="the actuator's factor in the rates"),
        )

    def measure(self, state: _Columns, step: StepView) -> tuple[_Columns, Sequence[Measurement]]:
        """Read the groups; a rate that is a tensor stays on its device."""
        rates = [group["lr"] for group in step.optimizer.param_groups if "lr" in group]
        if not rates:
            return state, ()
        if state.rates.axis is None or len(state.rates.axis) != len(rates):
            state = _Columns(rates=_rates(len(rates)), factor=state.factor)
        factor = step.rate_factor
        if any(isinstance(rate, torch.Tensor) for rate in rates):
            value = torch.stack(_on_one_device(rates)) * factor
        else:
            value = rates if factor == 1.0 else [rate * factor for rate in rates]
        used = Measurement(column=state.rates, value=value)
        if factor == 1.0:
            return state, (used,)
        return state, (used, Measurement(column=state.factor, value=factor))


def _on_one_device(rates: Sequence[torch.Tensor | float]) -> list[torch.Tensor]:
    """The rates as scalars on the device of the first tensor."""
    device = next(rate.device for rate in rates if isinstance(rate, torch.Tensor))
    dtype = widest(device)
    return [
        rate.detach().reshape(()).to(device, dtype, non_blocking=True)
        if isinstance(rate, torch.Tensor)
        else torch.full((), rate, dtype=dtype, device=device)
        for rate in rates
    ]


def _rates(groups: int) -> Column:
    axis = Axis(name="group", labels=tuple(f"group {i}" for i in range(groups)))
    return Column(
        name="lr", axis=axis, reduce="max", dtype="float64", about="learning rate in force, by parameter group"
    )
