"""Compares the model's parameters with what the optimizer holds, what gets a gradient, and what would move."""

from collections.abc import Mapping
from typing import Any

import torch

from dynaxx.checks._looking import chosen, objective
from dynaxx.core.navigation import Check, LivePoint
from dynaxx.core.parameters import own_parameters
from dynaxx.core.records import Cost
from dynaxx.errors import BadInput

NAMED = 16
"""Parameters that are named of each kind."""


class OptimizerHolds(Check):
    """The four ways in which a parameter fails to learn, told apart by one backward.

    frozen: it does not require a gradient. outside: it does, and is in no group of the optimizer. unreached: no
    gradient arrives at it. resting: a gradient arrives, and all of it is zero. foreign: what the optimizer holds is
    not the model's, because the model was rebuilt, moved or wrapped after the optimizer was made.
    """

    cost = Cost(forwards=1, backwards=1)

    def look(self, point: LivePoint) -> Mapping[str, Any]:
        """Look.

        Args:
            point: The live run.

        Returns:
            The names of each kind, at most 16 · foreign, the number of scalar parameters that the optimizer holds and
            the model does not · rates_of_zero, how many groups have a learning rate of zero · stateless, of those that
            it holds, how many it never updated, where it keeps a state at all · parameters, how many tensors there are.
        """
        named = list(point.model.named_parameters())
        held = own_parameters(point.optimizer)
        inside, own = {id(p) for p in held}, {id(p) for _, p in named}
        learning = [(name, p) for name, p in named if p.requires_grad]
        arrived = _gradients(point)
        states = point.optimizer.state
        return {
            "frozen": [name for name, p in named if not p.requires_grad][:NAMED],
            "outside": [name for name, p in learning if id(p) not in inside][:NAMED],
            "unreached": [name for name, _ in learning if arrived.get(name) is None][:NAMED],
            "resting": [name for name, _ in learning if arrived.get(name) == 0][:NAMED],
            "foreign": sum(p.numel() for p in held if id(p) not in own),
            "rates_of_zero": sum(float(group.get("lr", 1.0)) == 0 for group in point.optimizer.param_groups),
            "stateless": sum(not states.get(p) for p in held) if states else 0,
            "parameters": len(named),
        }


def _gradients(point: LivePoint) -> dict[str, float | None]:
    """Name → largest absolute gradient on the last batch; None where none arrives. Empty where nothing can be said."""
    try:
        looked = objective(point, [chosen(point, None)])
        with looked.prepared(), torch.enable_grad():
            loss = looked.loss(0)
            if not loss.requires_grad:
                return {}
            found = torch.autograd.grad(loss, looked.parameters, allow_unused=True)
    except BadInput:
        return {}  # no parameter requires a gradient: all are among the frozen ones
    return {
        key: None if g is None else float(g.detach().abs().amax()) if g.numel() else 0.0
        for key, g in zip(looked.keys, found, strict=True)
    }
