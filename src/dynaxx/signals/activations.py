"""Statistics of every layer's output in the training forward: mean, spread, zeros, saturation, dead units."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from dynaxx.core.contracts import ForwardSignal, FunctionObserver, Tap
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout, widest
from dynaxx.core.records import Axis, Column, Cost, Measurement
from dynaxx.core.task import first_tensor

WINDOW = 8
"""A unit is called dead after so many measured steps without one non-zero output: in a live ReLU unit each forward
of 64 examples or more is zero throughout with probability 2⁻⁶⁴ where half of them activate it."""

_KINDS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softsign, nn.GLU,
)  # fmt: skip
_NEVER_CALLED = NonDynamicallyQuantizableLinear
"""The output projection within MultiheadAttention, which uses its weights without calling it."""
_FUNCTIONS: dict[Callable[..., Any], str] = {
    functional.relu: "ReLU", torch.relu: "ReLU", Tensor.relu: "ReLU",
    torch.tanh: "Tanh", Tensor.tanh: "Tanh", functional.tanh: "Tanh",
    torch.sigmoid: "Sigmoid", Tensor.sigmoid: "Sigmoid", functional.sigmoid: "Sigmoid",
    functional.gelu: "GELU", functional.silu: "SiLU", functional.leaky_relu: "LeakyReLU", functional.elu: "ELU",
}  # fmt: skip
_SATURATED: dict[str, tuple[float, float]] = {
    "Tanh": (-0.99, 0.99), "Sigmoid": (0.01, 0.99), "Softsign": (-0.99, 0.99),
    "ReLU6": (-1.0, 6.0), "Hardsigmoid": (0.0, 1.0),
}  # fmt: skip
"""Beyond these outputs a bounded activation's slope is under 2 % (tanh), 1 % (sigmoid) or zero; other kinds have no
upper bound and cannot saturate, so they have no such column (a logits layer must never be called saturated)."""


class ActivationTap(Tap):
    """Adds one forward's statistics to buffers made beforehand; called inside compiled graphs too.

    Args:
        bounds: Entries at or beyond these are saturated; None: it cannot saturate.
        unit_dimension: The dimension whose entries are units: 1 for channels first, −1 else; 0: found from the shape.
        device: Where the buffers are.
    """

    def __init__(self, bounds: tuple[float, float] | None, unit_dimension: int, device: torch.device) -> None:
        self.bounds = bounds
        self.unit_dimension = unit_dimension
        self.sums = torch.zeros(5, dtype=widest(device), device=device)
        self.silent: Tensor | None = None
        """Which units gave zeros only in the last forward; written, never read, in the forward: a compiler would make
        one graph for None and another for a tensor."""
        self.idle = torch.zeros((), dtype=torch.int32, device=device)
        self.reads = 0

    def __call__(self, inputs: tuple[Any, ...], output: Any) -> None:
        """Add count, sums of entries and of squares, numbers of zeros and of saturated ones; note the silent units."""
        del inputs
        x = first_tensor(output)
        if x is None or not x.is_floating_point() or x.dim() == 0 or x.numel() == 0:
            return
        x = x.detach()
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        dimension = (self.unit_dimension or (1 if x.dim() >= 4 else -1)) % x.dim()
        others = [d for d in range(x.dim()) if d != dimension]
        # Measured on CPU: var_mean costs 25 times these four passes together, a mask of zeros and its count 5 times,
        # the largest and the smallest entry of each unit up to 10 times the sum of signs.
        mean = x.mean()
        variance = torch.linalg.vector_norm(x - mean).square() / x.numel()
        marks = x.sign().abs_()
        active = marks.sum(others) if others else marks
        zeros = 1 - active.sum() / x.numel()
        saturated = torch.zeros_like(mean)
        if self.bounds is not None:
            saturated = ((x <= self.bounds[0]) | (x >= self.bounds[1])).to(mean.dtype).mean()
        row = torch.stack([torch.ones_like(mean), mean, variance, zeros, saturated]).to(self.sums.dtype)
        row[2] += row[1].square()  # not before: in float32 the square of a large mean would swallow the variance
        self.sums.add_(row, alpha=x.numel())
        self.silent = (active == 0) & mean.isfinite()  # the sign of NaN is zero too

    def dead(self, unknown: Tensor) -> Tensor:
        """Share of units that have been silent in the last `WINDOW` calls of this.

        Args:
            unknown: What it returns before there were so many.
        """
        if self.silent is None:
            return unknown
        if self.idle.shape != self.silent.shape:
            self.idle, self.reads = torch.zeros_like(self.silent, dtype=torch.int32), 0
        self.idle, self.reads, self.silent = (self.idle + 1) * self.silent, self.reads + 1, None
        return unknown if self.reads < WINDOW else (self.idle >= WINDOW).to(unknown.dtype).mean()


@dataclass(slots=True)
class _State:
    device: torch.device
    taps: dict[str, ActivationTap] = field(default_factory=dict[str, ActivationTap])
    modules: set[str] = field(default_factory=set[str])
    columns: tuple[Column, ...] = ()


class Activations(ForwardSignal[_State]):
    """Mean, standard deviation, share of exact zeros, of saturated entries and of dead units of layers' outputs.

    Looked at are modules that own parameters, activation modules, and activation functions that the model calls
    (`functional.relu` in module `block` is named `block.relu`). Dead: no non-zero output in the last 8 measured
    steps, of each the last forward. Saturated: by the kind of activation, NaN for kinds that cannot saturate. Under
    data parallelism these are of rank 0's share of the data.
    """

    at = Event.STEP_END
    cost = Cost()

    def init(self, model: nn.Module, layout: Layout) -> _State:
        """No taps yet."""
        del model
        return _State(device=layout.device)

    def tap(self, state: _State, name: str, module: nn.Module) -> Tap | None:
        """A tap for layers and activation modules."""
        owns = next(module.parameters(recurse=False), None) is not None
        if name == "" or not (owns or isinstance(module, _KINDS)) or isinstance(module, _NEVER_CALLED):
            return None
        if isinstance(module, _KINDS):
            state.modules.add(name)
        channels = type(module).__name__.startswith(("Conv", "BatchNorm", "GroupNorm", "InstanceNorm", "SyncBatch"))
        dimension = 1 if channels else -1 if owns else 0
        state.taps[name] = ActivationTap(_bounds(module), dimension, state.device)
        return state.taps[name]

    def functions(self, state: _State) -> dict[Callable[..., Any], FunctionObserver]:
        """Activation functions, each call a row of its own."""

        def observer(kind: str) -> FunctionObserver:
            def observe(site: str, owner: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                del kwargs
                if owner in state.modules:  # called by an activation module, which has its own tap
                    return
                if site not in state.taps:
                    state.taps[site] = ActivationTap(_SATURATED.get(kind), 0, state.device)
                state.taps[site](args, output)

            return observe

        return {function: observer(kind) for function, kind in _FUNCTIONS.items()}

    def measure(self, state: _State, step: StepView) -> tuple[_State, Sequence[Measurement]]:
        """Read the buffers of the forwards since the last measurement."""
        if not state.taps:
            return state, ()
        taps = list(state.taps.values())
        if not state.columns or len(state.columns[0].axis or ()) != len(taps):
            state.columns = _columns(tuple(state.taps))
        sums = torch.stack([tap.sums for tap in taps])
        mean, square, zeros, saturated = (sums[:, 1:] / sums[:, :1]).unbind(1)
        unknown = torch.full_like(mean[0], torch.nan)
        saturated = torch.stack([unknown if t.bounds is None else s for t, s in zip(taps, saturated, strict=True)])
        dead = torch.stack([tap.dead(unknown) for tap in taps])
        spread = (square - mean.square()).clamp_min(0).sqrt()
        for tap in taps:
            tap.sums.zero_()
        values = (mean, spread, zeros, saturated, dead)
        return state, [Measurement(column=c, value=v) for c, v in zip(state.columns, values, strict=True)]


def _bounds(module: nn.Module) -> tuple[float, float] | None:
    if type(module) is nn.Hardtanh:
        return module.min_val, module.max_val
    return _SATURATED.get(type(module).__name__)


def _columns(labels: tuple[str, ...]) -> tuple[Column, ...]:
    axis = Axis(name="activation", labels=labels)
    about = {
        "mean": "mean of the layer's output",
        "std": "standard deviation of the layer's output",
        "zeros": "fraction of outputs exactly zero",
        "saturated": "fraction of outputs at the flat ends of a bounded activation",
        "dead": f"fraction of units without a non-zero output in the last {WINDOW} measured steps",
    }
    return tuple(Column(name=f"activations.{k}", axis=axis, reduce="none", about=v) for k, v in about.items())
