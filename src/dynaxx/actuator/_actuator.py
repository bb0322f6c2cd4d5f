"""Keeps the actions in force, applies them around each optimizer step, and hands out receipts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dynaxx import catalog
from dynaxx.actuator._groups import Groups
from dynaxx.actuator._layers import Layers
from dynaxx.actuator._rates import RatesInForce
from dynaxx.core.contracts import Actuation
from dynaxx.core.events import StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Action, Receipt
from dynaxx.errors import BadInput


@dataclass(slots=True)
class _InForce:
    action: Action
    actuation: Actuation
    taken: int = 0


class Actuator:
    """The actions in force on one run.

    Args:
        receipt: Called with every receipt; the session logs it.
        layout: The model's parameters by layer.
        optimizer: The innermost optimizer.
        rates: The rates that the user's configuration asks for, in force as long as the run is; None: the loop's own.
    """

    def __init__(
        self,
        receipt: Callable[[Receipt], None],
        layout: Layout,
        optimizer: Optimizer,
        rates: RatesInForce | None = None,
    ) -> None:
        self._receipt = receipt
        self._layout, self._optimizer = layout, optimizer
        self.rates = rates
        self._groups, self._layers = Groups(), Layers()
        self._in_force: dict[str, _InForce] = {}
        self._rate = 1.0
        self._acted = False
        self._held: list[tuple[Tensor, Tensor | None]] = []
        self._found_inf: Tensor | None = None
        self._scalers: Tensor | None = None
        self.stopping: str | None = None
        """Why the run is to end, once a `stop` is in force."""

    @property
    def idle(self) -> bool:
        """Whether nothing is in force; then a step costs nothing here."""
        return not self._in_force and self.rates is None

    @property
    def leaves_out(self) -> bool:
        """Whether an update may be left out, so that what its forward changes must be known."""
        return "skip" in self._in_force

    @property
    def in_force(self) -> dict[str, Action]:
        """The actions in force by name."""
        return {name: item.action for name, item in self._in_force.items()}

    @property
    def rate(self) -> float:
        """What the learning rates of the last step were multiplied by."""
        return self._rate

    def begin(self, action: Action, step: int) -> Receipt:
        """Put an action into force; one of the same name replaces it.

        Args:
            action: What to do.
            step: The last completed step.

        Returns:
            The receipt, which is in the log already.

        Raises:
            BadInput: The action's arguments break a rule, or this run has no place for it. UnknownName: there is no
                such action.
        """
        kind = catalog.get("actions", action.name)
        if action.steps is not None and action.steps < 1:
            raise BadInput(f"apply({action.name!r}, steps=...) must be at least 1. Got {action.steps}.")
        try:
            actuation: Actuation = kind(**action.arguments)
        except TypeError as error:
            raise BadInput(f"apply({action.name!r}, ...): {error}.") from None
        actuation.check(self._layout, self._optimizer)
        if action.name in self._in_force:
            self.lift(action.name, step, "replaced")
        self._in_force[action.name] = _InForce(action, actuation)
        if actuation.stops:
            self.stopping = action.reason
        return self._hand_out(Receipt(action=action, step=step, status="begun", detail=str(actuation)))

    def lift(self, name: str, step: int, why: str = "lifted") -> None:
        """End an action; one that is not in force is left alone.

        Args:
            name: The action.
            step: The last completed step.
            why: For the receipt.
        """
        gone = self._in_force.pop(name, None)
        if gone is not None:
            self._hand_out(Receipt(action=gone.action, step=step, status="ended", detail=why))

    def before(self, view: StepView) -> None:
        """Change what the optimizer reads before it calls a closure: the learning rates.

        All that changes them puts its factors into the step, and their product is applied once.

        Args:
            view: The step; its `rates` are complete afterwards, for the signals to read.
        """
        self._acted = True
        measured = self.rates is not None and self.rates.before(view)
        for item in self._in_force.values():
            if not item.actuation.of_gradient:
                item.actuation.before(view)
        self._rate = view.rates.group
        self._groups.scale(view.optimizer, self._rate)
        self._layers.keep(view, measured=measured)

    def reshape(self, view: StepView, *, again: bool = False) -> None:
        """Change the gradients that the optimizer is about to use, or leave the update out.

        Args:
            view: The step.
            again: Whether a closure has been evaluated in this step before; then it is too late to leave it out.
        """
        for item in self._in_force.values():
            if item.actuation.of_gradient:
                item.actuation.before(view)
        if self.rates is not None:
            self.rates.gradients(view)
        wanted = [item.actuation.skips for item in self._in_force.values()]
        skip = [w for w in wanted if w is not False]
        if skip and not again:
            self._leave_out(view, skip)

    def after(self, view: StepView) -> bool:
        """Undo what must not outlive the step, and end what is over.

        Args:
            view: The step just taken.

        Returns:
            Whether its update was left out.
        """
        if not self._acted:  # most runs, at every step
            return False
        self._acted = False
        ratios = self._layers.scale(view)
        for item in reversed(list(self._in_force.values())):
            item.actuation.after(view)
        self._groups.restore()
        skipped = bool(self._held)
        for parameter, gradient in self._held:
            parameter.grad = gradient
        self._held.clear()
        if self._found_inf is not None:
            skipped = bool(self._found_inf)  # this is a host sync point on an accelerator: only under `skip`
            self._found_inf = None
            if self._scalers is None:
                del view.optimizer.__dict__["found_inf"]
            else:
                view.optimizer.__dict__["found_inf"] = self._scalers
        if self.rates is not None and ratios is not None and not skipped:
            self.rates.after(ratios)
        for name, item in list(self._in_force.items()):
            item.taken += 1  # updates that were left out count too: else `skip` would never end
            if item.taken == item.action.steps:
                self.lift(name, view.step, f"after {item.action.steps} steps")
        return skipped

    def state_dict(self) -> dict[str, Any]:
        """The actions in force, for the checkpoint."""
        return {
            name: {
                "arguments": dict(i.action.arguments),
                "steps": i.action.steps,
                "reason": i.action.reason,
                "taken": i.taken,
                "state": i.actuation.state_dict(),
            }
            for name, i in self._in_force.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put the actions of a checkpoint back into force, except `stop`: a run that goes on was not stopped.

        Args:
            state: What `state_dict` returned.
        """
        self._in_force.clear()
        for name, kept in state.items():
            if name == "stop":
                continue
            action = Action(name=name, arguments=kept["arguments"], steps=kept["steps"], reason=kept["reason"])
            actuation: Actuation = catalog.get("actions", name)(**action.arguments)
            actuation.load_state_dict(kept.get("state", {}))  # older checkpoints have none
            self._in_force[name] = _InForce(action, actuation, kept["taken"])

    def go_back(self, state: Mapping[str, Any], step: int) -> None:
        """Take up the actions of an earlier step, with receipts for what ends and what begins by it.

        Args:
            state: What `state_dict` returned then.
            step: That step.
        """
        before = self.in_force
        self.load_state_dict(state)
        for name in before.keys() - self._in_force.keys():
            self._hand_out(Receipt(action=before[name], step=step, status="ended", detail="rolled back"))
        for name in self._in_force.keys() - before.keys():
            item = self._in_force[name]
            self._hand_out(Receipt(action=item.action, step=step, status="begun", detail=f"{item.actuation}, again"))

    def _leave_out(self, view: StepView, skip: list[bool | Tensor]) -> None:
        optimizer = view.optimizer
        fused = any(group.get("fused") for group in optimizer.param_groups)
        if fused and view.layout.device.type != "cpu":
            # A fused optimizer reads this flag on the device: nothing waits, moments and step counts stay.
            flags = [torch.as_tensor(s, dtype=torch.float32, device=view.layout.device) for s in skip]
            self._scalers = optimizer.__dict__.get("found_inf")
            flags += [] if self._scalers is None else [self._scalers]
            self._found_inf = torch.stack([f.reshape(()) for f in flags]).amax()
            optimizer.__dict__["found_inf"] = self._found_inf
            return
        if not any(bool(s) for s in skip):
            return
        # Every optimizer of torch passes over parameters without a gradient, moments and weight decay included.
        # Multiplying gradients by zero instead would move Adam and momentum on, and NaN·0 is NaN.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self._held.append((parameter, parameter.grad))
                parameter.grad = None

    def _hand_out(self, receipt: Receipt) -> Receipt:
        self._receipt(receipt)
        return receipt
