"""Parameter groups whose learning rate decays from the last layers to the first."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

from dynaxx.errors import BadInput

_LISTS = (nn.Sequential, nn.ModuleList)
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)


def layer_decay(model: nn.Module, rate: float, decay: float = 0.75, **options: Any) -> list[dict[str, Any]]:
    """Layer-wise decayed rates: ηₗ = η·d^(L − 1 − l) for the l-th of L layers, in the order of the model's modules.

    Layers are the items of the outermost `Sequential`s and `ModuleList`s (the blocks of a transformer or a ResNet) and
    the modules beside them; normalisation belongs to what stands before it, and what a module with blocks owns itself
    (tokens, positions) to the first layer within. Modules count in the order in which they were assigned: where that is
    not the order of the forward, give groups by hand.

    Args:
        model: Any model; frozen parameters are left out.
        rate: η, of the last layer.
        decay: d; 0.75 is BEiT's, 0.95 for what was trained on similar data. At 1 all rates are equal.
        options: Further entries of every group.

    Returns:
        Groups for any optimizer, first layer first, each with named `params` and its `lr`.

    Raises:
        BadInput: A number is out of its range, or all parameters are frozen.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> [group["lr"] for group in layer_decay(net, 0.1, 0.5)]
        [0.025, 0.05, 0.1]

    Reference: Howard & Ruder 2018 (ULMFiT); Clark et al. 2020 (ELECTRA); Bao et al. 2021 (BEiT).
    """
    if not rate > 0:
        raise BadInput(f"layer_decay(rate=...) must be more than 0. Got {rate!r}.")
    if not 0 < decay <= 1:
        raise BadInput(f"layer_decay(decay=...) must be above 0 and at most 1. Got {decay!r}.")
    depth = _depths(model)
    layers: dict[int, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        layers.setdefault(depth[name], []).append((name, parameter))
    last = max(layers, default=0)
    trained = {at: [(n, p) for n, p in layers[at] if p.requires_grad] for at in sorted(layers)}
    groups = [{**options, "params": named, "lr": rate * decay ** (last - at)} for at, named in trained.items() if named]
    if not groups:
        raise BadInput("layer_decay(model): no parameter requires a gradient, so there is nothing to train.")
    return groups


def _depths(model: nn.Module) -> dict[str, int]:
    """Parameter → number of its layer; a parameter shared by several layers belongs to the first."""
    depths: dict[str, int] = {}
    first = {name for name, _ in model.named_parameters()}
    layer = -1
    for prefix, unit, own in _units(model, ""):
        named = [f"{prefix}{name}" for name, _ in unit.named_parameters(recurse=not own)]
        named = [name for name in named if name in first and name not in depths]
        if own:
            depths.update(dict.fromkeys(named, layer + 1))
            continue
        if named and not (layer >= 0 and _only_norms(unit)):
            layer += 1
        depths.update(dict.fromkeys(named, max(layer, 0)))
    return depths


def _units(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module, bool]]:
    """Layers in order, as (prefix of names, module, whether only what it owns itself is meant)."""
    if not any(isinstance(m, _LISTS) for m in module.modules()):
        yield prefix, module, False
        return
    yield prefix, module, True
    for name, child in module.named_children():
        if isinstance(module, _LISTS) and not isinstance(child, _LISTS):
            yield f"{prefix}{name}.", child, False
        else:
            yield from _units(child, f"{prefix}{name}.")


def _only_norms(unit: nn.Module) -> bool:
    owners = [m for m in unit.modules() if next(m.parameters(recurse=False), None) is not None]
    return all(isinstance(m, _NORMS) for m in owners)
