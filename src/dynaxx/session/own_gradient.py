"""This rank's own gradient, seen before the ranks average it: its squared norm, by hooks on the parameters."""

import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dynaxx.core.parameters import Layout


class OwnGradient:
    """‖gᵣ‖² of the one backward of a step, taken as each parameter's gradient arrives; nothing is communicated.

    Hooks of the parameters run before those by which DistributedDataParallel reduces, and before a loop that reduces by
    itself.

    Args:
        layout: The model's parameters.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._hooks: list[Any] = []
        self._squares: dict[int, Tensor] = {}
        self._several = False
        self._seconds = 0.0

    def begin(self) -> None:
        """Watch the coming backward."""
        self.finish()
        for i, parameter in enumerate(self._layout.parameters):
            if parameter.requires_grad:
                self._hooks.append(parameter.register_hook(partial(self._arrives, i)))

    def finish(self) -> tuple[Tensor | None, float]:
        """The gradient is complete.

        Returns:
            ‖gᵣ‖², None where none or more than one backward was seen; and the seconds it took.
        """
        for hook in self._hooks:
            hook.remove()
        squares = [] if self._several else list(self._squares.values())
        seconds = self._seconds
        self._hooks, self._squares, self._several, self._seconds = [], {}, False, 0.0
        return (torch.stack(squares).sum() if squares else None), seconds

    def _arrives(self, i: int, gradient: Tensor) -> None:
        start = time.perf_counter()
        self._several |= i in self._squares
        self._squares[i] = torch.linalg.vector_norm(gradient.detach()).float().square()
        self._seconds += time.perf_counter() - start
