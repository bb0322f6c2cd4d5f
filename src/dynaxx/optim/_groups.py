"""Which parameters of a model a method is meant for: matrices, embeddings, vectors, the output head."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from dynaxx.errors import BadInput, UnknownName

Named = list[tuple[str, nn.Parameter]]


def trainable(owner: str, model: nn.Module) -> Named:
    """The parameters of a model that require a gradient, each once.

    Args:
        owner: Name of the optimizer's class.
        model: The model.

    Returns:
        Names and parameters.

    Raises:
        BadInput: There is none.
    """
    found = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not found:
        raise BadInput(
            f"{owner}.for_model(model={type(model).__name__}): no parameter requires a gradient. Unfreeze some."
        )
    return found


def embeddings(model: nn.Module) -> set[int]:
    """The ids of parameters that are tables of embeddings, tied ones included.

    Args:
        model: The model.

    Returns:
        Ids of the parameters of every `nn.Embedding` and `nn.EmbeddingBag`.
    """
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    return {id(p) for table in tables for p in table.parameters(recurse=False)}


def decay_groups(owner: str, model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of named parameters: those that weight decay is for, and the rest.

    Decay is for matrices and kernels: at least two dimensions, and not a table of embeddings. Biases, the scales of
    norms and other vectors shift and scale activations, and rare rows of a table would decay between their visits.

    Args:
        owner: Name of the optimizer's class.
        model: The model; frozen parameters are left out.
        weight_decay: Of the first group.

    Returns:
        One or two groups, none of them empty.
    """
    tables = embeddings(model)
    decayed: Named = []
    rest: Named = []
    for name, p in trainable(owner, model):
        (decayed if p.dim() >= 2 and id(p) not in tables else rest).append((name, p))
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


HEADS = ("lm_head", "head", "classifier", "score", "fc", "output", "unembed")
"""What modules that make the outputs are called in Transformers, timm, torchvision and nanoGPT's descendants."""


def output_head(model: nn.Module) -> set[str]:
    """The module that makes the outputs, by its name or its place.

    Args:
        model: The model.

    Returns:
        The path of the outermost `nn.Linear` with a name of `HEADS`; without one, of the last `nn.Linear` in the order
        of registration; empty where there is no `nn.Linear`.
    """
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    named = [path for path in linear if path.rpartition(".")[2] in HEADS]
    return {min(named, key=lambda path: path.count("."))} if named else set(linear[-1:])


def beneath(owner: str, model: nn.Module, paths: Sequence[str]) -> set[str]:
    """The names of parameters that paths stand for, a module's path for all of its parameters.

    Args:
        owner: Name of the optimizer's class.
        model: The model.
        paths: Of modules or parameters.

    Returns:
        Names of parameters.

    Raises:
        UnknownName: There is nothing at a path.
    """
    names = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for path in paths:
        here = {name for name in names if path in ("", name) or name.startswith(f"{path}.")}
        if not here:
            raise UnknownName(f"module or parameter of {type(model).__name__} for {owner}", path, names)
        found |= here
    return found


def group_of(optimizer: Optimizer, parameter: Tensor) -> tuple[dict[str, Any], int]:
    """The group that a parameter is in, and its place there.

    Args:
        optimizer: Any.
        parameter: One of its parameters.

    Returns:
        Group and index.

    Raises:
        BadInput: It is not one of them.
    """
    for group in optimizer.param_groups:
        for index, each in enumerate(group["params"]):
            if each is parameter:
                return group, index
    raise BadInput(
        f"{type(optimizer).__name__}: this parameter (shape {tuple(parameter.shape)}) is not one of its own. "
        "Ask for a parameter of its groups."
    )
