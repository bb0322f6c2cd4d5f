"""What all probes share: their plain functions, the title of an objective, and a meter of what a probe took."""

import inspect
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from dynaxx.core.chart import Chart
from dynaxx.core.contracts import Probe
from dynaxx.core.objective import LossFunction, Mode, Objective
from dynaxx.core.records import Cost

CHECK_PASSES = 8.0
"""Most forwards (and backwards) that the check of a new Hessian or Gauss–Newton operator takes, once per model, on a
few examples: one graph and two differences, in float64 and again where that fails."""


class ProbeFunction(Protocol):
    """A probe as a plain function on live objects: the arguments of `Objective`, then the probe's own options."""

    def __call__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: Sequence[Any],
        *,
        weight: Callable[[Any], float] | None = None,
        parameters: Sequence[str] | Callable[[str], bool] | None = None,
        mode: Mode = "evaluation",
        microbatch: int | None = None,
        **options: Any,
    ) -> Chart: ...


def as_function(kind: type[Probe]) -> ProbeFunction:
    """The plain function of a probe.

    Args:
        kind: The probe's class.

    Returns:
        `function(model, loss_fn, batches, **options) -> Chart`; the model stays as it is.
    """

    def function(
        model: nn.Module,
        loss_fn: LossFunction,
        batches: Sequence[Any],
        *,
        weight: Callable[[Any], float] | None = None,
        parameters: Sequence[str] | Callable[[str], bool] | None = None,
        mode: Mode = "evaluation",
        microbatch: int | None = None,
        **options: Any,
    ) -> Chart:
        probe = kind(**options)
        return probe.run(
            Objective(model, loss_fn, batches, weight=weight, parameters=parameters, mode=mode, microbatch=microbatch)
        )

    function.__name__ = function.__qualname__ = kind.__module__.rpartition(".")[2]
    function.__module__ = kind.__module__.rpartition(".")[0]
    function.__doc__ = f"{inspect.getdoc(kind)}\n\nThe arguments before `options` are those of `Objective`."
    return function


def title(objective: Objective) -> str:
    """What is looked at, in a line.

    Args:
        objective: The loss and the point.

    Returns:
        "MLP · 4,810 of 4,810 parameters · 512 examples in 4 batches · evaluation mode".
    """
    whole, batches = sum(p.numel() for p in objective.model.parameters()), len(objective.batches)
    return " · ".join([
        type(objective.model).__name__,
        f"{objective.numel:,} of {whole:,} parameters",
        f"{objective.weight:,.6g} examples in {batches} batch{'' if batches == 1 else 'es'}",
        objective.mode if objective.mode == "as is" else f"{objective.mode} mode",
    ])  # fmt: skip


class Meter:
    """Seconds and peak memory from its making on.

    On CUDA the peak is that of the allocator; elsewhere the rise of the process's high-water mark, 0 where an earlier
    peak was not exceeded.

    Args:
        objective: Whose device is watched.
    """

    def __init__(self, objective: Objective) -> None:
        self._device = objective.parameters[0].device
        self._start = time.perf_counter()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = float(torch.cuda.memory_allocated(self._device))
        else:
            self._before = _high_water()

    def cost(self, *, products: float = 0.0, forwards: float = 0.0, backwards: float = 0.0) -> Cost:
        """What it took until now.

        Args:
            products: Curvature products with one vector each.
            forwards: Passes over all batches of the objective, those within products left out.
            backwards: Backward passes likewise.

        Returns:
            The cost, with seconds and peak memory.
        """
        cuda = self._device.type == "cuda"
        peak = float(torch.cuda.max_memory_allocated(self._device)) if cuda else _high_water()  # waits for the device
        return Cost(
            forwards=forwards,
            backwards=backwards,
            products=products,
            seconds=time.perf_counter() - self._start,
            peak_bytes=max(0.0, peak - self._before),
        )


def _high_water() -> float:
    """Largest resident memory of the process so far, in bytes; 0 on Windows."""
    if sys.platform == "win32":
        return 0.0
    import resource  # Unix only

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
