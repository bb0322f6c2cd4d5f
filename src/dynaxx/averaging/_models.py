"""The average of several trained models, such as those of several seeds, held two at a time."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from dynaxx.core.parameters import some
from dynaxx.errors import BadInput


def average_models(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The equal average of state dicts, Σ wᵢ / n, in float32 at least while it is taken and in their own types after.

    Models that were trained apart from the start seldom lie in one basin: their average may be worse than each. It is
    meant for runs that share their beginning. Buffers of whole numbers must agree up to counters, which are taken from
    the last; recompute batch normalisation after.

    Args:
        states: `model.state_dict()` of each, one after the other: a generator that loads them needs memory of two.

    Returns:
        Name → average, copies.

    Raises:
        BadInput: There is none, or one is of another architecture; the message names the tensors.

    Example:
        >>> average_models([{"w": torch.tensor([1.0])}, {"w": torch.tensor([4.0])}])
        {'w': tensor([2.5000])}

    Reference: Wortsman et al. 2022, "Model soups".
    """
    total: dict[str, Tensor] = {}
    types: dict[str, torch.dtype] = {}
    count = 0
    for state in states:
        count += 1
        if count == 1:
            types = {name: t.dtype for name, t in state.items()}
            total = {name: t.detach().to(_wide(t.dtype), copy=True) for name, t in state.items()}
            continue
        _same(total, state, count)
        for name, mean in total.items():
            value = state[name].detach().to(mean.device, mean.dtype)
            if mean.is_floating_point() or mean.is_complex():
                # Infinities, as those of masks, must stay: their difference is no number.
                mean.copy_(torch.where(mean == value, mean, torch.lerp(mean, value, 1 / count)))
            else:
                mean.copy_(value)
    if count == 0:
        raise BadInput("average_models(states): there is no state. Give at least one.")
    return {name: mean.to(types[name]) for name, mean in total.items()}


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point or dtype.is_complex else dtype


def _same(first: Mapping[str, Tensor], other: Mapping[str, Tensor], number: int) -> None:
    missing, further = [n for n in first if n not in other], [n for n in other if n not in first]
    shapes = [n for n in first if n in other and first[n].shape != other[n].shape]
    for what, names in (("lacks", missing), ("has besides", further), ("has other shapes of", shapes)):
        if names:
            raise BadInput(
                f"average_models(states): model {number} is not of the first one's architecture: it {what} "
                f"{some(names)}."
            )
