"""A checkpoint that is compared with the point that is probed: of the same architecture, under the model's names."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dynaxx.core.objective import Objective
from dynaxx.core.parameters import bare_name
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.symmetry import state

SHOWN = 5
"""Tensors that a message names."""


def whole(objective: Objective, call: str) -> dict[str, Tensor]:
    """Parameters and buffers where the objective stands, of a model that lies whole on this rank.

    Args:
        objective: The point.
        call: Who asks, for messages.

    Returns:
        Name in the model → tensor.

    Raises:
        NotApplicable: Parameters are sharded, or other ranks hold other batches.
    """
    if objective.sharded or objective.ranks.size > 1:
        raise NotApplicable(f"{call}: parameters or batches are spread over ranks. Gather the model on one rank.")
    return state(objective)


def alike(objective: Objective, given: Mapping[str, Tensor], call: str) -> dict[str, Tensor]:
    """A checkpoint under the names of the model, on its device and of its types.

    Buffers that a `state_dict` does not hold are the model's own; names of tied tensors may stand twice.

    Args:
        objective: The point.
        given: Parameters and buffers by name, with wrappers' prefixes or without.
        call: What is checked ("connectivity(other=...)").

    Returns:
        Name in the model → tensor.

    Raises:
        BadInput: Tensors are missing, unknown or of another shape, or a parameter is not finite; it is named.
    """
    here = whole(objective, call.partition("(")[0])
    there = {bare_name(name): tensor.detach() for name, tensor in given.items()}
    saved = {bare_name(name) for name in objective.model.state_dict()}
    problems: list[str] = []
    found: dict[str, Tensor] = {}
    for key, tensor in here.items():
        other = there.get(bare_name(key))
        if other is None:
            if bare_name(key) in saved:
                problems.append(f"{bare_name(key)} {tuple(tensor.shape)} here, missing there")
            found[key] = tensor
        elif other.shape != tensor.shape:
            problems.append(f"{bare_name(key)} {tuple(tensor.shape)} here, {tuple(other.shape)} there")
        else:
            found[key] = other.to(device=tensor.device, dtype=tensor.dtype)
    known = saved | {bare_name(key) for key in here}
    problems += [f"{name} missing here, {tuple(there[name].shape)} there" for name in there if name not in known]
    if problems:
        more = f", and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise BadInput(
            f"{call} is a checkpoint of another architecture: {len(problems)} tensors differ: "
            f"{'; '.join(problems[:SHOWN])}{more}. Give one of the same model."
        )
    for name in objective.leaves():  # a buffer may be a mask that holds −∞
        if found[name].is_floating_point() and not bool(torch.isfinite(found[name]).all()):
            raise BadInput(f"{call}: {bare_name(name)!r} is not finite. Give a sound checkpoint.")
    return found


def distance(objective: Objective, one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> float:
    """‖θ₁ − θ₂‖ over all parameters.

    Args:
        objective: Names them.
        one: Parameters by name.
        two: Likewise.

    Returns:
        In units of the weights.
    """
    return sum(float((one[n].double() - two[n].double()).square().sum()) for n in objective.leaves()) ** 0.5
