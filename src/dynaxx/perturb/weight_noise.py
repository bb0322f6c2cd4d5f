"""Gaussian noise on the weights while gradients are computed."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from dynaxx.core.arguments import at_least
from dynaxx.core.methods import Perturber
from dynaxx.core.parameters import Layout
from dynaxx.numerics.reductions import tensor_norms
from dynaxx.perturb._common import Kept, Noise, trainable


class WeightNoise(Perturber):
    """Weight noise: step from w along ∇L(w + σ s ξ) with ξ ~ N(0, 1) drawn anew in each step, s a scale of the tensor.

    All micro-batches of a step see the same noise. With `relative` s is the root mean square of the weights of this
    rank's part of the tensor; without it s = 1. The weights come back from a copy. The noise depends on (seed, step,
    name) alone, so a resumed run and every rank draw the same.

    Args:
        model: The model.
        std: σ; the paper's is 0.075, not relative, for recurrent nets. 0.01 is a hundredth of each weight's size.
        relative: Whether noise is in units of each tensor's weights; a tensor of zeros then stays as it is.
        seed: Of the noise.

    Raises:
        BadInput: A number is out of its range.

    Reference: Murray & Edwards 1994; Graves 2011, "Practical Variational Inference for Neural Networks".
    """

    memory: ClassVar[str] = "1 × parameters"

    def __init__(self, model: nn.Module, *, std: float = 0.01, relative: bool = True, seed: int = 0) -> None:
        self._std = at_least("WeightNoise", "std", std, 0.0)
        trainable("WeightNoise", model)
        self._layout = Layout(model)
        self._noise, self._relative = Noise(seed), relative
        self._step = 0
        self._begun = False
        self._kept: Kept | None = None

    def begin(self) -> None:
        """Move the weights."""
        self._undo()
        self._begun = True
        layout, weights = self._layout, self._layout.local_parameters()
        chosen = [i for i, p in enumerate(layout.parameters) if p.requires_grad]
        self._kept = Kept([weights[i] for i in chosen])
        with torch.no_grad():
            norms = tensor_norms(weights, layout)
            for i in chosen:
                noise = self._noise.normal(self._step, layout.names[i], layout.parameters[i]).mul_(self._std)
                scale = norms[i] / max(1, weights[i].numel()) ** 0.5 if self._relative else 1.0
                weights[i].add_((noise * scale).to(noise.dtype))

    def ascend(self) -> bool:
        """The gradients are those to be used."""
        return False

    def restore(self) -> None:
        """The weights as they were."""
        self._undo()
        self._step += self._begun
        self._begun = False

    def state_dict(self) -> dict[str, Any]:
        """Steps so far."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._step = int(state["step"])

    def _undo(self) -> None:
        if self._kept is not None:
            self._kept.put_back()
            self._kept = None
