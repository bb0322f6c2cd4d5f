"""One point of a training's trajectory, read when it is asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A checkpoint as a point of parameter space: memory is taken when it is loaded, not before.

    Args:
        step: Completed optimizer steps.
        run: Which run it is of.
        load: Reads its parameters and buffers, bare name → tensor of the caller's own on the CPU.
    """

    step: int
    run: str
    load: Callable[[], Mapping[str, Tensor]]
