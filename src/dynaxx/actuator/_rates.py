"""Puts a run's `Rates` into each step, and shows them what the layers did: one window late, without waiting."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynaxx.core.events import StepView
from dynaxx.core.parameters import Layout
from dynaxx.numerics.reductions import layer_norms
from dynaxx.schedules import Rates


class _Sent(NamedTuple):
    """A measurement on its way to the host: two rows, ratios and gradient norms; `arrived` waits for it."""

    values: Tensor
    arrived: Callable[[], None]


class RatesInForce:
    """The rates of one run.

    A measurement of step s reaches the rates at step s + `every`: its copy to the host has long arrived by then, and
    what happens in which step depends on step numbers alone, so that a resumed run is the same bit for bit.

    Args:
        rates: The rates.
        layout: The model's parameters by layer.
    """

    def __init__(self, rates: Rates, layout: Layout) -> None:
        rates.bind(layout.axis)
        self._rates = rates
        self._axis = layout.axis
        self._every = 0 if rates.meso is None else rates.meso.every
        self._gradients: Tensor | None = None
        self._sent: _Sent | None = None

    def before(self, view: StepView) -> bool:
        """Put the factors into the step.

        Args:
            view: The step.

        Returns:
            Whether the update of every layer is to be measured.
        """
        measured = self._every > 0 and view.step % self._every == 0
        if measured:
            self._receive()
        view.rates = view.rates * self._rates.factors(view.step - 1)
        return measured

    def gradients(self, view: StepView) -> None:
        """Take the gradient norms of a measured step, as the optimizer is going to use the gradients.

        Args:
            view: The step.
        """
        if self._every > 0 and view.step % self._every == 0:
            self._gradients = layer_norms(view.gradients, view.layout, view.gradient_factor)

    def after(self, ratios: Tensor) -> None:
        """Send a measurement on its way.

        Args:
            ratios: ‖Δθ_l‖ / ‖θ_l‖ of each layer before its factor, shape (layers,).
        """
        if self._gradients is None:
            return
        values, self._gradients = torch.stack([ratios, self._gradients]), None
        if values.device.type == "cpu":
            self._sent = _Sent(values, lambda: None)
            return
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.device.type == "cuda")
        host.copy_(values, non_blocking=True)
        event = torch.Event()
        event.record()
        self._sent = _Sent(host, event.synchronize)

    def state_dict(self) -> dict[str, Any]:
        """The state of the rates, and the measurement on its way, which this waits for."""
        if self._sent is not None:
            self._sent.arrived()
        return {"rates": self._rates.state_dict(), "sent": None if self._sent is None else self._sent.values.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `state_dict` returned.
        """
        self._rates.load_state_dict(state["rates"])
        self._rates.bind(self._axis)
        kept = state["sent"]
        self._sent = None if kept is None else _Sent(torch.tensor(kept, dtype=torch.float64), lambda: None)

    def _receive(self) -> None:
        if self._sent is None:
            return
        sent, self._sent = self._sent, None
        sent.arrived()
        ratios, gradients = sent.values.tolist()
        self._rates.observe(ratios, gradients)
