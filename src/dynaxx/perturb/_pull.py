"""The pull towards earlier weights, apart from the optimizer's update, as decoupled weight decay is."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dynaxx.core.parameters import local, some
from dynaxx.errors import BadInput


def pull(
    optimizer: torch.optim.Optimizer,
    anchors: Mapping[Tensor, Tensor],
    stiffness: float,
    weights: Mapping[Tensor, Tensor] | None = None,
) -> None:
    """θ ← θ* + (θ − θ*)/(1 + η k), the proximal step of (k/2)(θ − θ*)² at each group's own rate η.

    To first order it is θ − η k (θ − θ*); unlike that it overshoots at no stiffness.

    Args:
        optimizer: Its groups give rates and parameters; those without an anchor are left alone.
        anchors: Parameter → this rank's part of θ*.
        stiffness: k, or its factor.
        weights: Parameter → entries of k over that factor; None: all 1.
    """
    with torch.no_grad():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter not in anchors:
                    continue
                part, rate = local(parameter.detach()), group["lr"]
                strength = (rate.to(part) if isinstance(rate, Tensor) else rate) * stiffness
                if weights is not None:
                    strength = weights[parameter] * strength
                part.lerp_(anchors[parameter], strength / (1 + strength))


def load(held: Mapping[Tensor, Tensor], named: Mapping[str, Tensor], saved: Mapping[str, Tensor], call: str) -> None:
    """Copy saved tensors into held ones.

    Args:
        held: Parameter → tensor to be written.
        named: Name → parameter.
        saved: Name → tensor.
        call: Whose state it is, for the message.

    Raises:
        BadInput: Names or shapes are those of another model.
    """
    wrong = [n for n in {*named, *saved} if n not in named or n not in saved or saved[n].shape != held[named[n]].shape]
    if wrong:
        raise BadInput(f"{call}: these are not of this model's names and shapes: {some(sorted(wrong))}.")
    for name, parameter in named.items():
        held[parameter].copy_(saved[name])
