"""Multiplies the update of each layer by its own factor, whatever the optimizer and its groups."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from dynaxx.core.events import StepView
from dynaxx.numerics.reductions import layer_norms


class _Kept(NamedTuple):
    place: int
    parameter: Tensor
    before: Tensor
    factor: float


class Layers:
    """θ ← θ_before + m_l (θ_after − θ_before) for every layer l whose factor m_l is not 1.

    For optimizers whose moments do not depend on the rate (SGD, Adam and their kin) this is a rate of m_l η in layer l,
    up to rounding. The whole update is scaled, weight decay included, coupled or not. Layers with factor 1 are not
    touched, bit for bit. In 16-bit weights what is smaller than half a unit in the last place is lost, as it is with
    any small rate.

    Memory: during the step, a copy of the parameters of the scaled layers; in a measured step, of all layers. Price:
    six sweeps over them. Sharded parameters are scaled shard by shard.
    """

    def __init__(self) -> None:
        self._scaled: list[_Kept] = []
        self._watched: list[_Kept] = []
        self._norms: Tensor | None = None

    def keep(self, view: StepView, *, measured: bool) -> None:
        """Copy what is going to be scaled, before the update.

        Args:
            view: The step, whose `rates` are complete.
            measured: Whether the update of every layer is to be known.
        """
        self._forget()  # what a step that failed has left
        factors = view.rates.layers
        if factors is None and not measured:
            return
        parameters = view.parameters
        self._norms = layer_norms(parameters, view.layout) if measured else None
        for place, (parameter, row) in enumerate(zip(parameters, view.layout.layer_of, strict=True)):
            factor = 1.0 if factors is None else factors[row]
            if factor != 1.0:
                self._scaled.append(_Kept(place, parameter, parameter.clone(), factor))
            elif measured:
                self._watched.append(_Kept(place, parameter, parameter.clone(), factor))

    def scale(self, view: StepView) -> Tensor | None:
        """Scale the update that was taken, and forget the copies.

        Args:
            view: The step just taken.

        Returns:
            ‖Δθ_l‖ / ‖θ_l‖ of each layer before its factor, where it was asked for: shape (layers,), on the device.
        """
        moving = [kept.parameter for kept in self._scaled]
        before = [kept.before for kept in self._scaled]
        _foreach("sub", moving, before)
        ratios = None if self._norms is None else self._updates(view) / self._norms
        _foreach("mul", moving, [kept.factor for kept in self._scaled])
        _foreach("add", moving, before)
        self._forget()
        return ratios

    def _updates(self, view: StepView) -> Tensor:
        """Norms of the updates by layer, while the scaled parameters hold θ_after − θ_before."""
        # The parameters of the other layers must stay as they are, so there the copies become before − after.
        _foreach("sub", [kept.before for kept in self._watched], [kept.parameter for kept in self._watched])
        updates: list[Tensor | None] = [None] * len(view.layout.parameters)
        for kept in self._scaled:
            updates[kept.place] = kept.parameter
        for kept in self._watched:
            updates[kept.place] = kept.before
        return layer_norms(updates, view.layout)

    def _forget(self) -> None:
        self._scaled, self._watched, self._norms = [], [], None


def _foreach(operation: str, tensors: Sequence[Tensor], others: Sequence[Any]) -> None:
    """One fused operation in place on many tensors."""
    if tensors:
        vars(cast(Any, torch))[f"_foreach_{operation}_"](tensors, others)
