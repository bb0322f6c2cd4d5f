"""How a learning rate is carried from a narrow model to a wide one: maximal update parametrisation by layer type."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from dynaxx.core.isolation import isolated_random
from dynaxx.core.task import Task
from dynaxx.errors import BadInput
from dynaxx.session.optimizers import optimizer_for

ADAM_LIKE = frozenset({"Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"})
"""Optimizers whose update of a weight does not grow with its gradient: the rule for Adam holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Factors on a learning rate from a narrow model to a wide one.

    Args:
        rate: For the one rate that a grid is centred on: `matrices` over `own`.
        matrices: By the rule, for weights whose fan-in grows with the width: hidden matrices and the output layer.
        vectors: By the rule, for the others: input layer, embeddings, biases, norms.
        own: What the task's own optimizer does already to the rate of the matrices, from narrow to wide.
        weight: Share of the wide model's parameters that the matrices hold.
        about: What was scaled, and why, in a sentence.
    """

    rate: float
    matrices: float
    vectors: float = 1.0
    own: float = 1.0
    weight: float = 1.0
    about: str = ""


def transfer(narrow: Task, wide: Task, optimizer: str | None = None) -> Transfer:
    """The factors from a task's narrow model to its wide one.

    Adam in standard parametrisation (Yang et al., 2022, arXiv:2203.03466, table 3): the rate of weights whose fan-in
    grows goes with 1 / fan-in, that of all others stays. Only rates are carried: initialisations stay as the task has
    them. A grid has one rate for all groups; it takes the rule of the matrices, divided by what the task's own
    optimizer does already. For gradient descent the rule leaves hidden matrices alone; for other optimizers nothing is
    established; both get 1.

    Args:
        narrow: The task at the proxy's width.
        wide: The task itself.
        optimizer: Another optimizer than the task's own.

    Returns:
        The factors.

    Raises:
        BadInput: The two models do not have parameters of the same names.

    Example:
        Adam, width 64 → 256, one rate in both: `matrices` = `rate` = 1/4, `vectors` = 1.
    """
    with isolated_random():
        models = narrow.model(), wide.model()
    small, large = (dict(model.named_parameters()) for model in models)
    if small.keys() != large.keys():
        odd = sorted(small.keys() ^ large.keys())[0]
        raise BadInput(
            f"{type(wide).__name__}.scaled(...) must give parameters of the same names. {odd!r} is in one only."
        )
    methods = [
        task.optimizer(model) if optimizer is None else optimizer_for(optimizer, model)
        for task, model in zip((narrow, wide), models, strict=True)
    ]
    inputs = _embeddings(models[1])
    grown = [
        name for name, p in large.items() if p.dim() >= 2 and p.shape[1] != small[name].shape[1] and id(p) not in inputs
    ]
    weight = sum(large[name].numel() for name in grown) / sum(p.numel() for p in large.values())
    kind = type(methods[1]).__name__
    if not grown or kind not in ADAM_LIKE:
        why = "no weight's fan-in grows" if not grown else f"no rule of width is established for one rate of {kind}"
        return Transfer(rate=1.0, matrices=1.0, weight=weight, about=f"The rate is carried over as it is: {why}.")
    biggest = max(grown, key=lambda name: large[name].numel())
    rule = small[biggest].shape[1] / large[biggest].shape[1]
    own = _rate_of(methods[1], large[biggest]) / _rate_of(methods[0], small[biggest])
    return Transfer(
        rate=rule / own,
        matrices=rule,
        own=own,
        weight=weight,
        about=(
            f"One rate for all groups takes the rule for matrices under {kind}, 1 / fan-in: × {rule:.3g}"
            + ("" if own == 1.0 else f", of which the task's own optimizer does × {own:.3g}")
            + f". They hold {weight:.0%} of the parameters; by the rule the others would keep their rate."
        ),
    )


def _embeddings(model: nn.Module) -> set[int]:
    """Weights whose second dimension is an output: embeddings, unless they are the output layer too."""
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    return {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)} - tied


def _rate_of(optimizer: Optimizer, parameter: torch.Tensor) -> float:
    for group in optimizer.param_groups:
        if any(p is parameter for p in group["params"]):
            return float(group["lr"])
    raise BadInput(f"transfer: {type(optimizer).__name__} does not hold the model's largest matrix. Give it to it.")
