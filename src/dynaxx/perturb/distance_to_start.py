"""A pull towards the weights that training began from, apart from the optimizer's update."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dynaxx.core.arguments import at_least
from dynaxx.core.methods import Perturber
from dynaxx.core.parameters import local
from dynaxx.perturb._common import trainable
from dynaxx.perturb._pull import load, pull


class DistanceToStart(Perturber):
    """The penalty (c/2)‖θ − θ₀‖² with θ₀ the weights when it is made: θ ← θ₀ + (θ − θ₀)/(1 + η c) after each step.

    It is decoupled, as AdamW's decay is: an adaptive optimizer would rescale a term of the gradient. It comes after the
    optimizer's step, so the logged update is that of the loss alone.

    Args:
        model: The model, with the weights to stay near to.
        strength: c, in the unit of weight decay; the paper searches 0.001 to 0.1 and mostly finds 0.1 or 0.01.

    Raises:
        BadInput: A number is out of its range.

    Example:
        `DistanceToStart(model).around(optimizer, closure)`

    Reference: Li et al. 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks" (L²-SP).
    """

    memory: ClassVar[str] = "1 × parameters"

    def __init__(self, model: nn.Module, *, strength: float = 0.01) -> None:
        self._strength = at_least("DistanceToStart", "strength", strength, 0.0)
        self._named = trainable("DistanceToStart", model)
        self._anchors: dict[Tensor, Tensor] = {p: local(p.detach()).clone() for p in self._named.values()}

    def begin(self) -> None:
        """Nothing changes within the step."""

    def ascend(self) -> bool:
        """The gradients are those to be used."""
        return False

    def restore(self) -> None:
        """Nothing was changed."""

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Pull."""
        pull(optimizer, self._anchors, self._strength)

    def state_dict(self) -> dict[str, Any]:
        """θ₀ by name, this rank's parts."""
        return {"start": {name: self._anchors[p] for name, p in self._named.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        load(self._anchors, self._named, state["start"], "DistanceToStart")
