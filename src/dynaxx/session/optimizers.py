"""An optimizer by its name and options, "adamw:lr=3e-4,betas=(0.9, 0.95)", for a whole model."""

import ast
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dynaxx import catalog
from dynaxx.errors import BadInput, UnknownName

_NEEDS_MORE = {"LBFGS", "SparseAdam"}
"""Optimizers of torch that a plain loop cannot drive: the one wants a closure, the other sparse gradients."""


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
    name, options = parsed(spec)
    kind = _of_torch(name)
    try:
        return kind([p for p in model.parameters() if p.requires_grad], **options)
    except (TypeError, ValueError) as error:
        raise BadInput(f"The optimizer {spec!r} cannot be made: {error}") from error


def parsed(spec: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a specification.

    Args:
        spec: "name:option=value,…".

    Returns:
        The name and the options.

    Raises:
        BadInput: It cannot be read.

    Example:
        >>> parsed("adamw:lr=3e-4,betas=(0.9, 0.95)")
        ('adamw', {'lr': 0.0003, 'betas': (0.9, 0.95)})
    """
    name, _, text = spec.strip().partition(":")
    try:
        call = ast.parse(f"_({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        options = {option.arg: ast.literal_eval(option.value) for option in call.keywords if option.arg is not None}
        well_formed = bool(name) and not call.args and len(options) == len(call.keywords)
    except (SyntaxError, ValueError, AssertionError):
        well_formed, options = False, {}
    if not well_formed:
        raise BadInput(f"An optimizer is written name:option=value,… (adamw:lr=3e-4,weight_decay=0.1). Got {spec!r}.")
    return name, options


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
