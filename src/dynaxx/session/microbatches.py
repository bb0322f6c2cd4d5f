"""The gradients of the microbatches of an accumulation, seen in what they add to the parameters' gradients."""

import time

import torch
from torch import Tensor

from dynaxx.core.parameters import Layout


class Microbatches:
    """Squared norms of the parts that backwards add to the gradient, by one running copy of it.

    Args:
        layout: The model's parameters.
    """

    def __init__(self, layout: Layout) -> None:
        self.seconds = 0.0
        """Time spent since it was last set to zero."""
        self.arrived = False
        """Whether a backward has added something since the last forward began."""
        self.sizes: list[int] = []
        """Examples of each forward of the step."""
        self._layout = layout
        self._copy: list[Tensor] = []
        self._squares: list[Tensor] = []

    def begin(self) -> None:
        """A step begins, or an attempt at it was left out."""
        self._squares.clear()
        self.sizes.clear()

    def add(self) -> None:
        """A backward has ended: take the norm of what it added, and keep what there is now."""
        start = time.perf_counter()
        parameters = [p for p in self._layout.parameters if p.requires_grad]
        with torch.no_grad():
            if not self._copy:
                self._copy = [torch.zeros_like(p) for p in parameters]
            elif not self._squares:
                torch._foreach_zero_(self._copy)  # pyright: ignore[reportPrivateUsage]
            pairs = [(c, p.grad) for c, p in zip(self._copy, parameters, strict=True) if p.grad is not None]
            copies, gradients = [c for c, _ in pairs], [g for _, g in pairs]
            torch._foreach_sub_(copies, gradients)  # pyright: ignore[reportPrivateUsage]
            norms = torch._foreach_norm(copies)  # pyright: ignore[reportPrivateUsage]
            torch._foreach_copy_(copies, gradients)  # pyright: ignore[reportPrivateUsage]
            self._squares.append(torch.stack([n.float() for n in norms]).square().sum())
        self.seconds += time.perf_counter() - start

    def finish(self) -> list[Tensor] | None:
        """The gradient is complete.

        Returns:
            ‖gᵢ‖² by microbatch; None where they are not one per forward, all of equal size.
        """
        if not self._squares:
            return None
        self.add()
        found, sizes = list(self._squares), list(self.sizes)
        self.begin()
        return found if len(found) == len(sizes) and len(set(sizes)) == 1 and sizes[0] > 0 else None
