"""The values that flow: what is measured, what is done, and what it cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Reduce = Literal["l2", "sum", "mean", "max", "min", "none"]
"""How the entries of an axis collapse to one value for the whole model; "mean" weighs by the axis' weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What a vector of measurements runs over: layers, activations, parameter groups.

    Args:
        name: The kind of thing ("layer").
        labels: One name per entry, in order.
        weights: One weight per entry for the reduction "mean" (the number of parameters of a layer); empty: all equal.
    """

    name: str
    labels: tuple[str, ...]
    weights: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of the run log: its name, what it runs over and how it collapses.

    Args:
        name: The signal's file name, or that and a suffix ("grad_norm", "activations.std"), or the user's own name.
        axis: None for one number a step.
        unit: The unit of the values; "1" for a ratio.
        reduce: How the entries of the axis become one value for the whole model.
        dtype: "float32" for measurements, "float64" for what must be kept exactly (loss, rates, times).
        about: One sentence for the reader of a figure.
    """

    name: str
    axis: Axis | None = None
    unit: str = "1"
    reduce: Reduce = "none"
    dtype: Literal["float32", "float64"] = "float32"
    about: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One column's value at one step, on its device until the log drains it.

    Args:
        column: Where it belongs.
        value: A number, or a tensor: scalar when the column has no axis, else of shape (len(axis),).
        fold: For a value finer than the axis, the entry of the axis that each of its entries belongs to; the log then
            reduces it as the column says, on the host, a block of steps at a time. It must be one object per run.
    """

    column: Column
    value: torch.Tensor | float | Sequence[float]
    fold: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The price of a measurement or a probe, declared before and counted after.

    Args:
        forwards: Training batches passed forward.
        backwards: Training batches passed backward.
        sweeps: Elements read from memory by all operations, temporaries included, over the number of parameters: the
            norm of the gradient is one, the norm of a difference of two copies three.
        products: Curvature products with one vector each.
        seconds: Wall-clock time, where it was measured.
        peak_bytes: Largest memory in use beyond what was in use before, where it was measured.
    """

    forwards: float = 0.0
    backwards: float = 0.0
    sweeps: float = 0.0
    products: float = 0.0
    seconds: float = 0.0
    peak_bytes: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A change of a live run that somebody asks for.

    Args:
        name: The file name of the action in `dynaxx.actuator` ("learning_rate").
        arguments: What the action takes, by name.
        steps: For how many optimizer steps it holds; None: until it is lifted.
        reason: Why, in words: the finding, the user, the configuration.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    steps: int | None = None
    reason: str = "asked for by the user"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of an action: every change of a live run leaves one in the log.

    Args:
        action: What was asked for.
        step: The last completed optimizer step when it was taken up.
        status: "begun", "ended" (its steps are over or it was lifted) or "refused".
        detail: What was done, or why not.
    """

    action: Action
    step: int
    status: Literal["begun", "ended", "refused"]
    detail: str = ""
