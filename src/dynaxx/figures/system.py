"""Where the time of a step goes, throughput, memory and utilisation."""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import median_filter

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Line, Lines, Panel
from dynaxx.figures._build import FEW
from dynaxx.figures._read import read_some, scale_for, sentence
from dynaxx.runlog import LabelledArray, RunView

_TIMES = {
    "system.step_seconds": "whole step",
    "system.data_seconds": "waiting for data",
    "system.forward_seconds": "forward",
    "system.backward_seconds": "backward",
    "system.optimizer_seconds": "optimizer",
    "system.measuring_seconds": "measuring",
}
_MEMORY = {"system.memory_host": "host", "system.memory_device": "device"}
_REST = {
    "system.samples_per_second": ("Samples per second", "samples/s"),
    "system.tokens_per_second": ("Tokens per second", "tokens/s"),
    "flops": ("Floating-point operations per second", "FLOP/s"),
    "flops.utilisation": ("Model FLOP utilisation", "share of the peak"),
    "system.device_busy": ("Time the accelerator was busy", "share"),
}
"""Title and vertical axis."""
_GIB = 2.0**30


class System(Figure):
    """Time, throughput, memory."""

    title = "System"
    order = 100

    def panels(self, view: RunView) -> Sequence[Panel]:
        """Parts of the step time, throughput, memory, utilisation."""
        names = (*_TIMES, *_MEMORY, *_REST)
        found = read_some(view, names, "neither times nor memory were recorded in this run")
        panels: list[Panel] = []
        times = {_TIMES[name]: array for name, array in found.items() if name in _TIMES}
        if times:
            panels.append(_times(times))
        panels += [_calm(found[name], *shown) for name, shown in _REST.items() if name in found]
        memory = {_MEMORY[name]: array for name, array in found.items() if name in _MEMORY}
        if memory:
            panels.append(_memory(memory))
        return panels


def _running_median(array: LabelledArray, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    values = array.values.astype(np.float64) * factor
    if len(values) >= FEW:
        values = median_filter(values, size=2 * (len(values) // 100) + 1, mode="nearest")
    return array.steps.astype(np.float64), values


def _times(times: dict[str, LabelledArray]) -> Lines:
    median = float(np.nanmedian(next(iter(times.values())).values))
    factor, unit = (1e3, "ms") if median < 0.5 else (1.0, "s")
    curves = [(label, *_running_median(array, factor)) for label, array in times.items()]
    return Lines(
        title=f"Parts of the step time ({unit})",
        lines=tuple(Line(label=label, x=x, y=y) for label, x, y in curves),
        y_label=f"time ({unit})",
        note="Running medians. On an accelerator the parts are the times of launching, not of computing.",
    )


def _calm(array: LabelledArray, title: str, y_label: str) -> Lines:
    x, y = _running_median(array)
    return Lines(
        title=title,
        lines=(
            Line(label="each step", x=x, y=array.values.astype(np.float64), style="faint"),
            Line(label="running median", x=x, y=y),
        ),
        y_label=y_label,
        y_scale=scale_for(array.values),
        note=sentence(array.column.about),
    )


def _memory(memory: dict[str, LabelledArray]) -> Panel:
    return Lines(
        title="Memory (GiB)",
        lines=tuple(
            Line(label=label, x=array.steps.astype(np.float64), y=array.values.astype(np.float64) / _GIB)
            for label, array in memory.items()
        ),
        y_label="memory (GiB)",
    )
