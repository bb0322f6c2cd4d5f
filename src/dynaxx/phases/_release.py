"""Steps that are shorter or longer than the optimizer's at first, by layer, and come to their own length linearly."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from dynaxx.core.parameters import Layout


class Release:
    """θ_l ← θ_l + f_l(s) Δθ_l with f_l(s) = f_l + (1 − f_l) s / S, s the steps since it began.

    While it lasts it costs a copy of the layers whose factor is not 1.

    Args:
        layout: The model's parameters by layer.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._first: tuple[float, ...] = ()
        self._steps = self._done = 0

    @property
    def factors(self) -> list[float]:
        """f_l(s) of the coming step, by layer."""
        if self._done >= self._steps:
            return [1.0] * len(self._layout.layers)
        share = self._done / self._steps
        return [f + (1 - f) * share for f in self._first]

    def begin(self, factors: Sequence[float], steps: int) -> None:
        """Start anew.

        Args:
            factors: f_l by layer.
            steps: S; 0: nothing is changed.
        """
        self._first, self._steps, self._done = tuple(factors), steps, 0

    def tick(self) -> None:
        """A step is complete."""
        self._done = min(self._done + 1, self._steps)

    @contextmanager
    def slowed(self) -> Generator[None]:
        """Around an optimizer's step."""
        if self._done >= self._steps:
            yield
            return
        factors = self.factors
        scaled = [
            (p.detach(), factors[row])
            for p, row in zip(self._layout.parameters, self._layout.layer_of, strict=True)
            if p.requires_grad and factors[row] != 1.0
        ]
        before = [p.clone() for p, _ in scaled]
        yield
        with torch.no_grad():
            for (p, factor), old in zip(scaled, before, strict=True):
                p.copy_(torch.lerp(old, p, factor))

    def state_dict(self) -> dict[str, Any]:
        """Factors, and the steps planned and done: plain numbers."""
        return {"factors": list(self._first), "steps": self._steps, "done": self._done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `state_dict` returned.
        """
        self._first = tuple(float(f) for f in state["factors"])
        self._steps, self._done = int(state["steps"]), int(state["done"])
