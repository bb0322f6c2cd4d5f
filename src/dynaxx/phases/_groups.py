"""Parameter groups that last through all phases: no optimizer's groups cut across them."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dynaxx.core.methods import ModelOptimizer
from dynaxx.optim.lars import Lars
from dynaxx.optim.sgd import SGD
from dynaxx.phases.phase import Stage

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


Options = list[dict[str, Any]]
"""What an optimizer is told, by group."""


def options_by_phase(
    stages: Sequence[Stage], optimizers: Sequence[ModelOptimizer], groups: Sequence[Mapping[str, Any]]
) -> list[Options]:
    """What the optimizer of each phase says of each common group.

    Weight decay that a phase does not name is such that the share η λ which a step takes of the weights stays as it was
    in the phase before.

    Args:
        stages: The phases.
        optimizers: Theirs, with the groups that they were made with.
        groups: Common groups, as torch keeps them.

    Returns:
        Options by phase and group.
    """
    found: list[Options] = []
    for i, (stage, optimizer) in enumerate(zip(stages, optimizers, strict=True)):
        if i and stage.optimizer == stages[i - 1].optimizer:
            found.append(found[-1])
            continue
        own = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        found.append([{k: v for k, v in own[id(g["params"][0])].items() if k not in _OWN} for g in groups])
        # SGD's decay goes through its momentum: it is another quantity.
        coupled = any(isinstance(each, SGD | Lars) for each in optimizers[max(0, i - 1) : i + 1])
        if i and not coupled and "weight_decay" not in stage.optimizer.options:
            for old, new in zip(found[-2], found[-1], strict=True):
                if float(new["lr"]) > 0:
                    new["weight_decay"] = float(old["weight_decay"]) * float(old["lr"]) / float(new["lr"])
    return found


@contextmanager
def multiplied(groups: Sequence[dict[str, Any]], factors: Sequence[float]) -> Generator[None]:
    """Rates times a factor by group, put back exactly: schedulers never see it.

    Args:
        groups: Of an optimizer.
        factors: One a group.
    """
    held = [group["lr"] for group in groups]
    for group, factor in zip(groups, factors, strict=True):
        if factor != 1.0:
            group["lr"] = group["lr"] * factor
    try:
        yield
    finally:
        for group, rate in zip(groups, held, strict=True):
            group["lr"] = rate
