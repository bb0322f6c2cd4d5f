"""The archive tier: the weights of a checkpoint alone, in bfloat16, a sixth of a full AdamW state.

An archived checkpoint can be blended, evaluated and exported. A training can only begin from it, with fresh optimizer
state (a warm start): `restore` says so.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from dynaxx.checkpoints.manifest import CheckpointInfo
from dynaxx.checkpoints.places import Place


def archive(place: Place, info: CheckpointInfo) -> CheckpointInfo:
    """Write the archived form of a checkpoint; the full one stays where it is, and is removed by who asked for this.

    Killed before the end, it leaves nothing; called again, it finds what is there.

    Args:
        place: Where the full one lies.
        info: The full one.

    Returns:
        The archived one, in `place.archive`.

    Raises:
        CorruptData: The full one is damaged.
        BadInput: It holds no model of a training.
        NotSaved: It cannot be written.
    """
    there = place.archive
    for old in there.list():
        if old.facts.get("of") == info.id and there.is_sound(old):
            return old
    state, _ = place.load(info, only=("model",))
    origin = None if info.origin is None else asdict(info.origin)
    facts = {**info.facts, "tier": "archive", "of": info.id, "dtype": "bfloat16", "origin": origin}
    return there.save(info.step, weights_only(state), facts=facts)


def is_archived(info: CheckpointInfo) -> bool:
    """Whether a checkpoint holds weights only.

    Args:
        info: The checkpoint.

    Returns:
        True for what `archive` wrote.
    """
    return info.facts.get("tier") == "archive"


def weights_only(state: Mapping[str, Any], dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """What of a training's state is archived.

    Matrices (tensors of two dimensions or more) of a wider floating type are rounded to the nearest value of the
    dtype: bfloat16 keeps them within 2⁻⁸ of themselves. Vectors stay as they are: they are a thousandth of the bytes,
    and the statistics of batch normalisation among them are sums that must not be rounded.

    Args:
        state: What `capture` returned.
        dtype: The floating type of the matrices.

    Returns:
        A state that `restore` takes as a warm start.

    Example:
        >>> state = {"model": {"state": {"w": torch.full((1, 2), 1.001), "b": torch.full((2,), 1.001)}}}
        >>> kept = weights_only(state)["model"]["state"]
        >>> kept["w"].tolist(), kept["b"].dtype
        ([[1.0, 1.0]], torch.float32)
    """
    rounded: dict[int, Tensor] = {}  # tied tensors are one object, and stay one
    empty = {"optimizer": None, "scheduler": None, "scaler": None, "extra": {}, "random": {}, "fingerprint": {}}
    return {"model": _rounded(state["model"], dtype, rounded), **empty}


def _rounded(value: Any, dtype: torch.dtype, done: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        if value.dim() < 2 or not value.is_floating_point() or value.element_size() <= dtype.itemsize:
            return value
        if id(value) not in done:
            done[id(value)] = value.to(dtype)
        return done[id(value)]
    if isinstance(value, dict):
        return type(value)((key, _rounded(part, dtype, done)) for key, part in value.items())
    return value
