"""Learning rate of every parameter group, and the factors in it: macro, meso, micro and reactive."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout, widest
from dynaxx.core.rates import NEUTRAL, RateFactors
from dynaxx.core.records import Axis, Column, Cost, Measurement
from dynaxx.phases import Phased


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    rates: Column
    macro: Column
    micro: Column
    reactive: Column
    layers: Column


class LearningRate(Signal[_Columns]):
    """η of each parameter group as used in the step: the loop's own rate times all that the actuator put on it.

    lr = base · lr.macro · lr.micro · lr.factor by group, and in layer l times lr.meso[l]. Groups that are added later
    get entries of their own from then on. Each factor has rows for the steps in which it is not 1.
    """

    at = Event.STEP_END
    every_step = True
    cost = Cost()

    def init(self, model: nn.Module, layout: Layout) -> _Columns:
        """The columns for one group; they grow with the optimizer's groups."""
        del model
        return _Columns(
            rates=_rates(1),
            macro=Column(name="lr.macro", dtype="float64", about="factor of the macro curve in the rates"),
            micro=Column(name="lr.micro", dtype="float64", about="factor of the periodic modulation in the rates"),
            reactive=Column(name="lr.factor", dtype="float64", about="factor of the actions in force in the rates"),
            layers=Column(name="lr.meso", axis=layout.axis, about="factor of each layer's own rate"),
        )

    def measure(self, state: _Columns, step: StepView) -> tuple[_Columns, Sequence[Measurement]]:
        """Read the groups; a rate that is a tensor stays on its device."""
        optimizer = step.optimizer
        rates = [group["lr"] for group in optimizer.param_groups if "lr" in group]
        if not rates:
            return state, ()
        if isinstance(optimizer, Phased):  # its groups hold the first phase's rates
            rates = [rate * factor for rate, factor in zip(rates, optimizer.rates, strict=True)]
        if state.rates.axis is None or len(state.rates.axis) != len(rates):
            state = replace(state, rates=_rates(len(rates)))
        in_force = rates
        if any(isinstance(rate, torch.Tensor) for rate in rates):
            in_force = torch.stack(_on_one_device(rates)) * step.rates.group
        elif step.rates is not NEUTRAL:
            in_force = [rate * step.rates.group for rate in rates]
        found = Measurement(column=state.rates, value=in_force)
        return state, (found,) if step.rates is NEUTRAL else (found, *_factors(state, step.rates))


def _factors(columns: _Columns, rates: RateFactors) -> list[Measurement]:
    """The factors that are not 1."""
    scalars = ((columns.macro, rates.macro), (columns.micro, rates.micro), (columns.reactive, rates.reactive))
    found = [Measurement(column=column, value=value) for column, value in scalars if value != 1.0]
    if rates.layers is not None:
        found.append(Measurement(column=columns.layers, value=rates.layers))
    return found


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
