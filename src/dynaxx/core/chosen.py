"""What an objective is a function of: a model without its wrappers, and the parameters that were chosen."""

from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import nn

from dynaxx.core.parameters import bare_name, some
from dynaxx.errors import BadInput, NotApplicable


def chosen(
    model: nn.Module, rule: Sequence[str] | Callable[[str], bool] | None
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[nn.Parameter, ...]]:
    """The chosen parameters of a model.

    Args:
        model: The model.
        rule: None, all that require a gradient; names; or a rule from name to True.

    Returns:
        Bare names, names as the model has them, and parameters.

    Raises:
        BadInput: There is none, a name is unknown, or one cannot be differentiated by.
    """
    named = {bare_name(key): (key, p) for key, p in model.named_parameters()}
    if isinstance(rule, str):
        rule = [rule]
    if rule is None:
        wanted = [name for name, (_, p) in named.items() if p.requires_grad]
    elif callable(rule):
        wanted = [name for name, (_, p) in named.items() if p.requires_grad and rule(name)]
    else:
        missing = [name for name in rule if name not in named]
        if missing:
            raise BadInput(f"Objective(parameters=...): the model has no {some(missing)}.")
        wanted = [name for name in named if name in set(rule)]
    if not wanted:
        raise BadInput(
            f"Objective(model={type(model).__name__}): no parameter to differentiate by. "
            "At least one must require a gradient and be chosen."
        )
    for problem, remedy in (
        ([n for n in wanted if not (named[n][1].is_floating_point() or named[n][1].is_complex())],
         "are integers, which have no derivative; leave them out by parameters="),
        ([n for n in wanted if named[n][1].is_complex()],
         "are complex; hold them as pairs of real numbers (torch.view_as_real) or leave them out by parameters="),
        ([n for n in wanted if not named[n][1].requires_grad],
         "do not require a gradient; leave them out or call requires_grad_()"),
    ):  # fmt: skip
        if problem:
            raise BadInput(f"Objective(model={type(model).__name__}): {some(problem)} {remedy}.")
    return tuple(wanted), tuple(named[n][0] for n in wanted), tuple(named[n][1] for n in wanted)


def bare_model(model: nn.Module) -> nn.Module:
    """A model without what wraps it, its sharded parameters in their places.

    Args:
        model: Any module.

    Returns:
        The innermost model.

    Raises:
        NotApplicable: It is wrapped in FSDP's first version.
    """
    while True:
        kind = type(model).__name__
        if kind == "DistributedDataParallel":
            model = cast(nn.Module, model.module)
        elif kind == "OptimizedModule":
            model = cast(nn.Module, model._orig_mod)
        else:
            break
    for module in model.modules():
        kinds = [base.__name__ for base in type(module).__mro__]
        if "FullyShardedDataParallel" in kinds:
            raise NotApplicable(
                "Objective(model=...): FSDP's first version keeps parameters in flat pieces that have no second "
                "derivative. Use torch.distributed.fsdp.fully_shard."
            )
        if is_managed(module):
            cast(Any, module).reshard()  # after a forward without backward the root's parameters lie whole
    return model


def is_managed(module: nn.Module) -> bool:
    """Whether FSDP2 (`fully_shard`) manages this module; asks without importing it.

    Args:
        module: Any module.

    Returns:
        True where it does.
    """
    return any(base.__name__ == "FSDPModule" for base in type(module).__mro__)
