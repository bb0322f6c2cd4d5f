"""What an entry of each family must be. One file in a family's folder holds exactly one class of the contract."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from dynaxx.core.chart import Chart
from dynaxx.core.events import Event, Need, StepView
from dynaxx.core.objective import Objective
from dynaxx.core.panels import Panel
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Cost, Measurement

State = TypeVar("State")

FunctionObserver = Callable[[str, str, tuple[Any, ...], dict[str, Any], Any], None]
"""`(site, owner, args, kwargs, output) -> None`: the call's name (`block.relu`, then `block.relu#2` for the second in
one forward), the path of the module whose forward made it, and what went in and came out."""


class Signal(ABC, Generic[State]):
    """A measurement of a live run. It reads a step and changes nothing: not a weight, not a random number.

    The file's name is the name of its column everywhere; further columns are named file name + "." + suffix.
    """

    at: ClassVar[Event]
    """When it is measured: `grads_ready` or `step_end`."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    """What must be prepared for it."""
    every_step: ClassVar[bool] = False
    """True: measured at every step. False: at the cadence that the overhead budget allows."""
    cost: ClassVar[Cost]
    """Declared price of one measurement, beyond that of its needs; the conformance suite counts it."""
    unit: ClassVar[str] = "1"
    """Unit of the main column."""

    @abstractmethod
    def init(self, model: nn.Module, layout: Layout) -> State:
        """The state before the first step.

        Args:
            model: The watched model, to look at.
            layout: Its parameters by layer.

        Returns:
            The first state. Raises `NotApplicable`, with the reason, where the signal cannot speak of this model.
        """

    @abstractmethod
    def measure(self, state: State, step: StepView) -> tuple[State, Sequence[Measurement]]:
        """Measure one step, without waiting for the device.

        Args:
            state: What the last call returned.
            step: The step, to read.

        Returns:
            The next state, and the measurements (tensors may stay on their device).
        """


class Tap(ABC):
    """Looks at the output of one module in its forward, and writes into buffers made beforehand.

    It is called inside compiled graphs too: tensor operations and plain attributes only, no host values.
    """

    @abstractmethod
    def __call__(self, inputs: tuple[Any, ...], output: Any) -> None:
        """See one forward of the module.

        Args:
            inputs: The module's positional inputs.
            output: What it returned.
        """


class ForwardSignal(Signal[State]):
    """A signal that also looks into the training forward: at modules' outputs and at functions called on tensors."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORWARD})

    @abstractmethod
    def tap(self, state: State, name: str, module: nn.Module) -> Tap | None:
        """The tap for a module, made once when the model is watched.

        Args:
            state: The first state.
            name: The module's path; "" is the model itself.
            module: The module.

        Returns:
            The tap, or None to leave this module alone.
        """

    def functions(self, state: State) -> Mapping[Callable[..., Any], FunctionObserver]:
        """Functions to look at when the model calls them (not inside compiled graphs).

        Args:
            state: The first state.

        Returns:
            Function → observer.
        """
        del state
        return {}


class Actuation(ABC):
    """A kind of change to a live run. Only the actuator calls it; everything else in Dynaxx reads.

    Constructed from the action's arguments; bad ones raise `BadInput`.
    """

    of_gradient: ClassVar[bool] = True
    """True: it needs or changes gradients, so under a closure it acts behind each of its calls. False: it acts before
    the optimizer's step begins, when a closure's gradients do not exist yet."""

    def check(self, layout: Layout, optimizer: Optimizer) -> None:
        """Refuse what this run has no place for, before anything is changed.

        Args:
            layout: The model's parameters by layer.
            optimizer: The innermost optimizer.

        Raises `BadInput` with the reason.
        """
        del layout, optimizer

    @abstractmethod
    def before(self, step: StepView) -> None:
        """Change the step that is about to be taken.

        Args:
            step: The step, with the gradients the optimizer is going to use.
        """

    def after(self, step: StepView) -> None:
        """Undo what must not outlive the step.

        Args:
            step: The step just taken.
        """
        del step

    def state_dict(self) -> dict[str, Any]:
        """What it has gathered from the steps so far, for the checkpoint: tensors and plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `state_dict` returned.
        """
        del state

    @property
    def skips(self) -> bool | torch.Tensor:
        """Whether the update of the current step is to be left out."""
        return False

    @property
    def stops(self) -> bool:
        """Whether the run is to end after the current step."""
        return False


class Figure(ABC):
    """A picture of a run: pure from the run's columns to panels of numbers; drawing them is done elsewhere, once."""

    title: ClassVar[str]
    """Heading in the report."""
    order: ClassVar[int] = 100
    """Place in the report, smallest first."""

    @abstractmethod
    def panels(self, view: Any) -> Sequence[Panel]:
        """The panels of the figure.

        Args:
            view: A `RunView`.

        Returns:
            The panels. Raises `NotApplicable`, with the reason, where the run holds nothing to show.
        """


class Probe(ABC):
    """A measurement of a point in parameter space, not of a live run. It leaves no trace.

    Constructed from its options, each with a default; bad ones raise `BadInput`. The constructor's docstring names
    them, and the command line offers them.
    """

    @abstractmethod
    def price(self, objective: Objective) -> Cost:
        """What it will cost there, declared before; it stays within.

        Args:
            objective: The loss and the point.

        Returns:
            Passes over all batches of the objective, and curvature products.
        """

    @abstractmethod
    def run(self, objective: Objective) -> Chart:
        """Measure.

        Args:
            objective: The loss and the point; not a weight, buffer, gradient or random number of it changes.

        Returns:
            What was found. Raises `NotApplicable`, with the reason, where the probe cannot speak; `BadInput` where the
            point or the loss breaks a rule. Equal on a repeated call with one seed.
        """
