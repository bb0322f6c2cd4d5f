"""Parameter groups that last through all phases: no optimizer's groups cut across them."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dynaxx.core.methods import ModelOptimizer
from dynaxx.optim.lars import Lars
from dynaxx.optim.sgd import SGD

_OWN = ("params", "param_names")


def common_groups(model: nn.Module, optimizers: Sequence[ModelOptimizer]) -> list[dict[str, Any]]:
    """The coarsest groups such that each lies within one group of every optimizer.

    A scheduler keeps its rates by group, and a checkpoint its parameters; so the groups must be there from the start
    and stay. Parameters keep the order of the model.

    Args:
        model: The model.
        optimizers: Made for it.

    Returns:
        Groups of named parameters, without options.
    """
    places = [
        {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        for optimizer in optimizers
    ]
    found: dict[tuple[int, ...], list[tuple[str, Tensor]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault(tuple(place[id(parameter)] for place in places), []).append((name, parameter))
    return [{"params": named} for named in found.values()]


def group_options(optimizer: ModelOptimizer, groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What an optimizer's own groups say of each common group.

    Args:
        optimizer: The optimizer, with the groups that it was made with.
        groups: Common groups, as torch keeps them.

    Returns:
        Options by common group.
    """
    own = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return [{key: value for key, value in own[id(group["params"][0])].items() if key not in _OWN} for group in groups]


def keep_decay(
    before: tuple[ModelOptimizer, Sequence[dict[str, Any]]], after: tuple[ModelOptimizer, Sequence[dict[str, Any]]]
) -> None:
    """Weight decay of the later options such that the share η λ that a step takes of the weights stays as it was.

    Between decoupled decays only: SGD's goes through its momentum.

    Args:
        before: Optimizer, and its options by common group.
        after: The same of the one that follows; changed in place.
    """
    if any(isinstance(optimizer, SGD | Lars) for optimizer, _ in (before, after)):
        return
    for old, new in zip(before[1], after[1], strict=True):
        if float(new["lr"]) > 0:
            new["weight_decay"] = float(old["weight_decay"]) * float(old["lr"]) / float(new["lr"])
