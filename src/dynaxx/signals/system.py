"""Where the time goes, how fast data goes through, and what memory is in use."""

from collections.abc import Sequence

import psutil
import torch
from torch import nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Column, Cost, Measurement

_PARTS = ("data", "forward", "backward", "optimizer", "measuring")


def _column(suffix: str, unit: str, about: str) -> Column:
    return Column(name=f"system.{suffix}", unit=unit, about=about)


_SECONDS = {part: _column(f"{part}_seconds", "s", f"host time of one step in: {part}") for part in _PARTS}
_TOTAL = _column("step_seconds", "s", "wall time of one step, evaluation left out")
_SAMPLES = _column("samples_per_second", "1/s", "examples per second, over all ranks")
_TOKENS = _column("tokens_per_second", "1/s", "tokens per second, over all ranks")
_HOST = _column("memory_host", "bytes", "resident memory of the training process")
_DEVICE = _column("memory_device", "bytes", "peak memory allocated on the accelerator")
_BUSY = _column("device_busy", "1", "share of time the accelerator was busy, as its driver reports it")


class System(Signal[psutil.Process]):
    """Wall time of a step and its parts on the host, throughput, memory.

    On an accelerator the parts are the times of launching; the sum over a step is right once its queue is full.
    """

    at = Event.STEP_END
    cost = Cost()
    unit = "s"

    def init(self, model: nn.Module, layout: Layout) -> psutil.Process:
        """A handle to this process."""
        del model, layout
        return psutil.Process()

    def measure(self, state: psutil.Process, step: StepView) -> tuple[psutil.Process, Sequence[Measurement]]:
        """Read clocks and counters; no pass over anything."""
        times = step.times
        parts = (times.data, times.forward, times.backward, times.optimizer, times.measuring)
        values = [Measurement(column=_SECONDS[name], value=t) for name, t in zip(_PARTS, parts, strict=True)]
        values.append(Measurement(column=_TOTAL, value=times.total))
        if times.total > 0 and step.batch.samples:
            values.append(Measurement(column=_SAMPLES, value=step.batch.samples * step.world_size / times.total))
        if times.total > 0 and step.batch.tokens:
            values.append(Measurement(column=_TOKENS, value=step.batch.tokens * step.world_size / times.total))
        values.append(Measurement(column=_HOST, value=float(state.memory_info().rss)))
        device = step.layout.device
        if device.type == "cuda":
            values.append(Measurement(column=_DEVICE, value=float(torch.cuda.max_memory_allocated(device))))
            busy = _utilisation(device)
            if busy is not None:
                values.append(Measurement(column=_BUSY, value=busy))
        return state, values


def _utilisation(device: torch.device) -> float | None:
    try:
        return torch.cuda.utilization(device) / 100
    except (ImportError, RuntimeError):  # the driver's Python bindings are an extra of torch's
        return None
