"""Finding places in a model to plant something: blocks, the head, activations; and replacing a module."""

from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from dynaxx.errors import NotApplicable


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules that own a matrix of parameters, in the order of the model.

    Args:
        model: The model.

    Returns:
        Path and module of each.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if any(p.dim() >= 2 for p in module.parameters(recurse=False))
    ]
    if len(found) < 2:
        raise NotApplicable(f"{type(model).__name__} has {len(found)} blocks with matrices; at least two are needed.")
    return found


def body(model: nn.Module, place: float) -> tuple[str, nn.Module]:
    """One of the blocks before the head.

    Args:
        model: The model.
        place: In [0, 1): from the first to the last.

    Returns:
        Path and module.
    """
    before = blocks(model)[:-1]
    return before[int(place * len(before))]


def head(model: nn.Module) -> tuple[str, nn.Linear]:
    """The last linear layer.

    Args:
        model: The model.

    Returns:
        Path and module. Raises `NotApplicable` where there is none.
    """
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not found or not found[-1][0]:
        raise NotApplicable(f"{type(model).__name__} has no linear layer as a part.")
    return found[-1]


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of another.

    Args:
        model: The model.
        path: The place.
        module: The new module.
    """
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def before_head(model: nn.Module, *inserted: nn.Module) -> None:
    """Insert modules in front of the last linear layer.

    Args:
        model: The model.
        inserted: What its input passes first.
    """
    path, last = head(model)
    replace(model, path, nn.Sequential(*inserted, last))


def groups_of(optimizer: Optimizer, key: str) -> list[dict[str, object]]:
    """The optimizer's groups that have an option.

    Args:
        optimizer: The optimizer.
        key: The option.

    Returns:
        The groups. Raises `NotApplicable` where there is none.
    """
    found = [group for group in optimizer.param_groups if key in group]
    if not found:
        raise NotApplicable(f"{type(optimizer).__name__} has no {key}.")
    return found


def without(optimizer: Optimizer, held: set[int]) -> None:
    """Take parameters out of an optimizer.

    Args:
        optimizer: The optimizer.
        held: Their identities.
    """
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in held]


def shaped(optimizer: Optimizer, scheduler: LRScheduler | None, factor: Callable[[int], float]) -> LRScheduler:
    """A schedule times a factor of its own.

    Args:
        optimizer: The optimizer.
        scheduler: The task's; None: constant.
        factor: By completed steps.

    Returns:
        The product. Raises `NotApplicable` where the task's is no `LambdaLR`.
    """
    if scheduler is not None and not isinstance(scheduler, LambdaLR):
        raise NotApplicable(f"A schedule can be shaped where it is a LambdaLR. Got a {type(scheduler).__name__}.")
    for group in optimizer.param_groups:
        group["lr"] = group.get("initial_lr", group["lr"])
    own = [lambda _: 1.0] * len(optimizer.param_groups) if scheduler is None else scheduler.lr_lambdas
    return LambdaLR(optimizer, [lambda step, f=f: f(step) * factor(step) for f in own])
