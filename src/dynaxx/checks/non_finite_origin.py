"""Replays batches and names the first tensor that is not finite: input, parameter, module, loss or backward."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx.checks._looking import objective, plain, tensors
from dynaxx.core.navigation import Check, LivePoint
from dynaxx.core.records import Cost
from dynaxx.errors import NotApplicable


class NonFiniteOrigin(Check):
    """Looks in the order in which a value that is not finite would arise, and stops at the first.

    The batches are taken from the last back; parameters come first, since with one of them nothing else can be told.
    """

    cost = Cost(forwards=16, backwards=8)

    def look(self, point: LivePoint) -> Mapping[str, Any]:
        """Look.

        Args:
            point: The live run.

        Returns:
            stage: "parameter", "input", "module", "loss", "backward" or "none" · where: the parameter, the part of the
            batch, the module · step: whose batch · rows: of an input, the first examples at fault.
        """
        for name, parameter in point.model.named_parameters():
            if not _finite(parameter):
                return {"stage": "parameter", "where": name, "step": point.step}
        for back, batch in enumerate(reversed(point.batches)):
            found = _input(batch) or _forward(point, batch) or _backward(point, batch)
            if found is not None:
                return {**found, "step": point.step - back}
        return {"stage": "none", "where": "", "step": point.step}


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _input(batch: Any) -> Mapping[str, Any] | None:
    for name, tensor in tensors(batch):
        if not _finite(tensor):
            bad = ~torch.isfinite(tensor.reshape(tensor.shape[0] if tensor.dim() else 1, -1)).all(1)
            return {"stage": "input", "where": name, "rows": bad.nonzero().flatten()[:8].tolist()}
    return None


def _forward(point: LivePoint, batch: Any) -> Mapping[str, Any] | None:
    fault: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            if not fault and isinstance(output, Tensor) and not _finite(output):
                fault.append(name or "(root)")

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in point.model.named_modules()]
    try:
        loss = objective(point, [batch]).value()
    finally:
        for handle in handles:
            handle.remove()
    if fault:
        return {"stage": "module", "where": fault[0]}
    return {"stage": "loss", "where": "loss_fn(model, batch)"} if plain(loss) is None else None


def _backward(point: LivePoint, batch: Any) -> Mapping[str, Any] | None:
    looked = objective(point, [batch])
    with looked.prepared(), torch.enable_grad():
        loss = looked.loss(0)
        if not loss.requires_grad:
            raise NotApplicable("the loss has no gradient")
        found = torch.autograd.grad(loss, looked.parameters, allow_unused=True)
    bad = [name for name, g in zip(looked.names, found, strict=True) if g is not None and not _finite(g)]
    return {"stage": "backward", "where": bad[-1], "parameters": bad[:8]} if bad else None
