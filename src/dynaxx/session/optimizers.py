"""An optimizer by its name and options, "adamw:lr=3e-4,betas=(0.9, 0.95)", for a whole model."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dynaxx import catalog
from dynaxx.errors import BadInput, UnknownName

_NEEDS_MORE = {"LBFGS", "SparseAdam"}
"""Optimizers of torch that a plain loop cannot drive: the one wants a closure, the other sparse gradients."""


_IN_WORDS: dict[type[Optimizer], tuple[str, ...]] = {
    torch.optim.SGD: ("momentum", "nesterov"),
    torch.optim.AdamW: ("betas", "eps"),
}
"""Options of a live optimizer that say all of it, besides its rate and weight decay."""


def optimizer_for(spec: str, model: nn.Module) -> Optimizer:
    """The optimizer that a specification names: an entry of `dynaxx.optim`, else a class of `torch.optim`.

    Args:
        spec: "name" or "name:option=value,…"; values are Python literals, names are those of the constructor. The
            case of a name of torch does not matter.
        model: Whose parameters it gets; for an optimizer of torch, those that require a gradient.

    Returns:
        The optimizer.

    Raises:
        UnknownName: There is no such optimizer.
        BadInput: The options cannot be read, or the optimizer refuses them or the model.

    Example:
        >>> optimizer_for("sgd:lr=0.5,momentum=0.9", nn.Linear(2, 1)).defaults["lr"]
        0.5
    """
    if spec.partition(":")[0].strip().replace("-", "_") in catalog.names("optim"):
        return catalog.choice("optim", spec).build(model)
    name, options = catalog.read_words("optimizer", spec)
    kind = _of_torch(name)
    try:
        return kind([p for p in model.parameters() if p.requires_grad], **options)
    except (TypeError, ValueError) as error:
        raise BadInput(f"The optimizer {spec!r} cannot be made: {error}") from error


def in_words(optimizer: Optimizer, model: nn.Module) -> str:
    """A live optimizer as the words that make its equal for a model.

    Args:
        optimizer: Plain SGD or AdamW of torch, as a task makes it.
        model: Its model.

    Returns:
        "adamw:lr=0.005,betas=(0.9, 0.99),eps=1e-08,weight_decay=0.1".

    Raises:
        BadInput: It is another, or its groups differ from those that the words would make.
    """
    kept = _IN_WORDS.get(type(optimizer))
    hint = "Name one in the first phase: optimizer=adamw:lr=1e-3."
    if kept is None:
        raise BadInput(f"phases need an optimizer by name, and the task's is {type(optimizer).__name__}. {hint}")
    group = optimizer.param_groups[0]
    decay = max(float(each["weight_decay"]) for each in optimizer.param_groups)
    options = {"lr": group["lr"], **{name: group[name] for name in kept}, "weight_decay": decay}
    words = f"{type(optimizer).__name__.lower()}:{','.join(f'{k}={v!r}' for k, v in options.items())}"
    if _options(optimizer, kept) != _options(optimizer_for(words, model), kept):
        raise BadInput(f"phases need an optimizer by name, and the task's has groups that {words!r} lacks. {hint}")
    return words


def _options(optimizer: Optimizer, names: tuple[str, ...]) -> dict[int, tuple[Any, ...]]:
    wanted = ("lr", "weight_decay", *names)
    return {id(p): tuple(group[name] for name in wanted) for group in optimizer.param_groups for p in group["params"]}


def _of_torch(name: str) -> Any:
    kinds = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, Optimizer)
        and value is not Optimizer
        and key not in _NEEDS_MORE
    }
    if name.lower() not in kinds:
        raise UnknownName("optimizer", name, {*kinds, *catalog.names("optim")})
    return kinds[name.lower()]
