"""Steps of an optimizer taken on a copy: how long its next ones would be, without moving a weight."""

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor
from torch.optim import Optimizer

from dynaxx.core.parameters import Layout, own_parameters


def step_lengths(optimizer: Optimizer, layout: Layout, gradients: Sequence[Mapping[str, Tensor]]) -> list[float]:
    """Median length of the steps that an optimizer would take along gradients, one after another, by layer.

    It costs a copy of its parameters and state while it runs, a step for each set of gradients, and one wait for the
    device. The optimizer, its parameters and their gradients stay as they are.

    Args:
        optimizer: The optimizer.
        layout: The model's parameters by layer.
        gradients: Sets of gradients by parameter name, at least one.

    Returns:
        ‖Δθ_l‖ by layer; 0 for a layer without gradients.
    """
    shadow = deepcopy(optimizer)  # copies parameters and state together, and leaves hooks behind
    names = {id(p): name for name, p in zip(layout.names, layout.parameters, strict=True)}
    copies = {names[id(p)]: q for p, q in zip(own_parameters(optimizer), own_parameters(shadow), strict=True)}
    lengths = [_lengths(shadow, copies, each) for each in gradients]
    by_name = torch.stack(lengths).cpu().double()
    row = dict(zip(layout.names, layout.layer_of, strict=True))
    squares = torch.zeros(len(lengths), len(layout.layers), dtype=torch.float64)
    squares.index_add_(1, torch.tensor([row[name] for name in copies]), by_name.square())
    return squares.sqrt().quantile(0.5, dim=0).tolist()


@torch.no_grad()
def _lengths(optimizer: Optimizer, named: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Tensor:
    """How far one step moves each parameter, on their device."""
    for name, parameter in named.items():
        parameter.grad = gradients[name].clone() if name in gradients else None
    before = [parameter.detach().clone() for parameter in named.values()]
    optimizer.step()
    moves = [p.detach() - w for p, w in zip(named.values(), before, strict=True)]
    device = moves[0].device
    norms = [torch.linalg.vector_norm(m, dtype=torch.promote_types(m.dtype, torch.float32)) for m in moves]
    return torch.stack([norm.to(device, torch.float32) for norm in norms])
