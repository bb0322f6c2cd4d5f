"""What all probes share: the title of an objective, and a meter of what a probe took."""

import sys
import time

import torch

from dynaxx.core.objective import Objective
from dynaxx.core.records import Cost

CHECK_PASSES = 8.0
"""Most forwards (and backwards) that the check of a new Hessian or Gauss–Newton operator takes, once per model, on a
few examples: one graph and two differences, in float64 and again where that fails."""


def title(objective: Objective) -> str:
    """What is looked at, in a line.

    Args:
        objective: The loss and the point.

    Returns:
        "MLP · 4,810 of 4,810 parameters · 512 examples in 4 batches · evaluation mode".
    """
    whole = sum(p.numel() for p in objective.model.parameters())
    return " · ".join([
        type(objective.model).__name__,
        f"{objective.numel:,} of {whole:,} parameters",
        f"{objective.weight:,.6g} examples in {len(objective.batches)} batches",
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
