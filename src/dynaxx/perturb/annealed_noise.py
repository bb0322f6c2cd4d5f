"""Gaussian noise on the gradients, annealed over the steps."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from dynaxx.core.arguments import at_least
from dynaxx.core.methods import Perturber
from dynaxx.core.parameters import Layout, local
from dynaxx.errors import BadInput
from dynaxx.numerics.reductions import layer_norms
from dynaxx.perturb._common import Noise, trainable


class AnnealedNoise(Perturber):
    """Gradient noise: g ← g + σₜ sₗ ξ with ξ ~ N(0, 1), σₜ² = η/(1 + t)^γ, t completed steps, sₗ a scale of the layer.

    With `relative` sₗ is the root mean square of the layer's gradient, so that σₜ is noise over signal in every layer;
    without it sₗ = 1, as published, and gradients must not be scaled: call `scaler.unscale_(optimizer)` before
    `ascend`. The noise depends on (seed, step, name) alone: a resumed run and every rank draw the same, and no global
    random stream moves.

    Args:
        model: The model.
        eta: η; the paper tries 0.01, 0.3 and 1.
        gamma: γ, 0.55 in the paper.
        relative: Whether noise is in units of each layer's gradient.
        seed: Of the noise.

    Raises:
        BadInput: A number is out of its range.

    Reference: Neelakantan et al. 2015, "Adding Gradient Noise Improves Learning for Very Deep Networks".
    """

    memory: ClassVar[str] = "1 × the largest parameter"

    def __init__(
        self, model: nn.Module, *, eta: float = 0.3, gamma: float = 0.55, relative: bool = True, seed: int = 0
    ) -> None:
        if not at_least("AnnealedNoise", "eta", eta, 0.0) > 0:
            raise BadInput(f"AnnealedNoise(eta=...) must be more than 0. Got {eta!r}.")
        self._eta, self._gamma = eta, at_least("AnnealedNoise", "gamma", gamma, 0.0)
        trainable("AnnealedNoise", model)
        self._layout = Layout(model)
        self._noise, self._relative = Noise(seed), relative
        self._step = 0
        self._begun = False

    @property
    def sigma(self) -> float:
        """σₜ of the coming step, or of the one in progress."""
        return (self._eta / (1 + self._step) ** self._gamma) ** 0.5

    def begin(self) -> None:
        """Nothing is changed before the gradients are there."""
        self._begun = True

    def ascend(self) -> bool:
        """Add the noise; gradients need no second pass."""
        layout = self._layout
        with torch.no_grad():
            scales = self._scales()
            for name, p, row in zip(layout.names, layout.parameters, layout.layer_of, strict=True):
                if p.grad is None:
                    continue
                if p.grad.is_sparse:  # noise reaches the rows that the batch has not seen
                    p.grad = p.grad.to_dense()
                noise = self._noise.normal(self._step, name, p).mul_(self.sigma)
                local(p.grad).add_(noise if scales is None else noise * scales[row].to(noise))
        return False

    def restore(self) -> None:
        """The step is over; its gradients keep the noise."""
        self._step += self._begun
        self._begun = False

    def state_dict(self) -> dict[str, Any]:
        """Steps so far."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._step = int(state["step"])

    def _scales(self) -> torch.Tensor | None:
        """Root mean square of each layer's gradient."""
        if not self._relative:
            return None
        found = layer_norms(self._layout.local_gradients(), self._layout)
        sizes = torch.tensor([float(layer.numel) for layer in self._layout.layers], dtype=found.dtype)
        return found / sizes.sqrt().to(found.device, non_blocking=True)
