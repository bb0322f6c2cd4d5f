"""Where a value that is not finite comes from: the parameter, the module or the loss at fault."""

from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from dynaxx.core.parameters import bare_name, local
from dynaxx.core.ranks import Ranks
from dynaxx.errors import BadInput

_CALL = "The objective cannot be probed here"


class _Losses(Protocol):
    """What is asked of an objective."""

    model: nn.Module
    batches: list[Any]
    ranks: Ranks

    def prepared(self) -> Any: ...

    def loss(self, i: int) -> Tensor: ...


def explain(objective: _Losses) -> NoReturn:
    """Say where a value that is not finite comes from; on several ranks all must call.

    Args:
        objective: Whose value or gradient is not finite.

    Raises:
        BadInput: Always; it names the parameter, the module or the loss at fault.
    """
    found = _parameter(objective.model)
    device = next(objective.model.parameters()).device
    if objective.ranks.total(torch.tensor(float(found is not None), device=device)) > 0:
        raise BadInput(f"{_CALL}: {found or 'a parameter is not finite on another rank.'}")
    raise BadInput(f"{_CALL}: {_forward(objective) or _elsewhere(objective.ranks)}")


def _elsewhere(ranks: Ranks) -> str:
    there = "" if ranks.size == 1 else " of this rank"
    also = "" if ranks.size == 1 else " Another rank may say more."
    return f"the gradient is not finite, though loss and outputs{there} are; look for 0/0 or √0 in a backward.{also}"


def _parameter(model: nn.Module) -> str | None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(local(parameter.detach())).all()):
            return f"the parameter {bare_name(name)!r} is not finite. Go back to a sound checkpoint."
    return None


def _forward(objective: _Losses) -> str | None:
    fault: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            if not fault and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                fault.append(name or "(root)")

        return hook

    named = objective.model.named_modules()
    handles = [module.register_forward_hook(look(bare_name(name))) for name, module in named]
    try:
        with torch.no_grad(), objective.prepared():
            for i in range(len(objective.batches)):
                value = objective.loss(i)
                if fault:
                    return f"the output of the module {fault[0]!r} is not finite on batch {i}."
                if not bool(torch.isfinite(value)):
                    return f"the loss of batch {i} is {float(value)}, though the model's outputs are finite."
    finally:
        for handle in handles:
            handle.remove()
    return None
