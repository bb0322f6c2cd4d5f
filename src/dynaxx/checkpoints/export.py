"""Export: the weights of a checkpoint as safetensors under the model's own names, for other tools."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynaxx.checkpoints.manifest import CheckpointInfo
from dynaxx.checkpoints.opening import find, open_place
from dynaxx.checkpoints.places import LocalPlace, Place
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.runlog.disk import sync_folder

Dtype = Literal["float32", "float16", "bfloat16"]
LARGEST = 5_000_000_000
"""Bytes of a file at most, but for a tensor that is larger: what the Hugging Face libraries split at, for the sake of
downloads that break off."""
NAME, INDEX = "model.safetensors", "model.safetensors.index.json"
AVERAGED = "averaged.safetensors"
"""Where `dynaxx train` writes the averaged model of a run that is finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written.

    Args:
        folder: Where.
        files: Names of the files, the index included if there is one.
        step: Completed optimizer steps of the weights; None: the averaged ones of the whole run.
        tensors: How many.
        bytes: Of the tensors.
        tied: Name → name of the tensor that it shares its values with; only the latter is in the file.
        left_out: Names in the state that are no tensors.
    """

    folder: str
    files: tuple[str, ...]
    step: int | None
    tensors: int
    bytes: int
    tied: Mapping[str, str]
    left_out: tuple[str, ...]


def export(
    source: str | Path | Place,
    folder: str | Path,
    *,
    at: int | str | None = None,
    dtype: Dtype | None = None,
    averaged: bool = False,
    largest: int = LARGEST,
) -> Exported:
    """Write the weights of a checkpoint.

    One file, `model.safetensors`, or several and `model.safetensors.index.json`, as the Hugging Face libraries have
    them. Of tied tensors one is written, the others are named in the metadata: `safetensors.torch.load_model` puts
    both back.

    Args:
        source: A run's folder, a folder of checkpoints, or the URL of one.
        folder: Where to write; made where it is missing.
        at: The checkpoint's step, id or name; None: the latest. Full ones are preferred to archived ones.
        dtype: Convert floating tensors to this; None: as they are.
        averaged: The averaged weights: those in the checkpoint, or, with at=None, of a run that is finished.
        largest: Bytes of a file at most, but for a tensor that is larger.

    Returns:
        What was written.

    Raises:
        BadInput: There is no such checkpoint or dtype, the folder holds an export, or values do not fit the dtype.
        NotApplicable: The checkpoint holds no model, or no averaged weights.
        CorruptData: It is damaged.
    """
    if dtype is not None and dtype not in get_args(Dtype):
        raise BadInput(f"export(dtype=...) must be one of {', '.join(get_args(Dtype))}. Got {dtype!r}.")
    if largest < 1:
        raise BadInput(f"export(largest=...) must be at least 1 byte. Got {largest}.")
    out = Path(folder)
    if taken := [name for name in (NAME, INDEX) if (out / name).exists()]:
        raise BadInput(f"export(folder={str(out)!r}): {taken[0]} is there already. Give another folder.")
    place = source if isinstance(source, Place) else open_place(source)
    state, info = _weights(place, at, averaged)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    own, tied = _untied(tensors)
    converted = {name: _converted(name, tensor, dtype) for name, tensor in own.items()}
    facts = {"format": "pt", **tied}
    if info is not None:
        facts |= {"dynaxx.step": str(info.step), "dynaxx.checkpoint": info.id}
    return Exported(
        folder=str(out),
        files=_write(out, converted, facts, largest),
        step=None if info is None else info.step,
        tensors=len(converted),
        bytes=sum(map(_size, converted.values())),
        tied=tied,
        left_out=tuple(name for name in state if name not in tensors),
    )


def _weights(place: Place, at: int | str | None, averaged: bool) -> tuple[dict[str, Any], CheckpointInfo | None]:
    """The state_dict to write, and of which checkpoint it is."""
    finished = Path(place.name).parent / AVERAGED
    if averaged and at is None and isinstance(place, LocalPlace) and finished.exists():
        return dict(load_file(finished)), None
    info, lies = find(place, at)
    state, _ = lies.load(info, only=("model", "extra") if averaged else ("model",))
    weights = dict(cast("Mapping[str, Any]", state["model"]["state"]))
    if averaged:
        weights.update(_averages(state["extra"], info))
    return weights, info


def _averages(extra: Mapping[str, Any], info: CheckpointInfo) -> Mapping[str, Tensor]:
    """The averages that an averager among the registered objects keeps by name."""
    for saved in extra.values():
        state = cast("Mapping[str, Any]", saved["state"]) if isinstance(saved["state"], Mapping) else {}
        if isinstance(state.get("averages"), Mapping):
            return cast("Mapping[str, Tensor]", state["averages"])
    raise NotApplicable(
        f"{info.path.name} holds no averaged weights. Train with an averager that runs along (--explorer ema), "
        "register it by watch(state=...), or blend checkpoints."
    )


def _untied(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, under the first of its names, and the other names."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in sorted(tensors.items()):
        if (known := first.setdefault(id(tensor), name)) != name:
            tied[name] = known
    return {name: tensor for name, tensor in tensors.items() if name not in tied}, tied


def _converted(name: str, tensor: Tensor, dtype: Dtype | None) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor.contiguous()
    found = tensor.to(getattr(torch, dtype))
    if not torch.equal(torch.isfinite(found), torch.isfinite(tensor)):
        raise BadInput(
            f"export(dtype={dtype!r}): {name} reaches {float(tensor.abs().max()):.3g}, beyond the largest {dtype}. "
            "Give bfloat16 or float32."
        )
    return found.contiguous()


def _write(folder: Path, tensors: Mapping[str, Tensor], facts: dict[str, str], largest: int) -> tuple[str, ...]:
    """Each file aside and renamed, the index last: who finds it finds all."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, Tensor]] = [{}]
    for name, tensor in tensors.items():
        if parts[-1] and sum(map(_size, parts[-1].values())) + _size(tensor) > largest:
            parts.append({})
        parts[-1][name] = tensor
    several = len(parts) > 1
    names = [f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)] if several else [NAME]
    for name, part in zip(names, parts, strict=True):
        aside = folder / f".{name}.part"
        save_file(part, aside, metadata=facts)
        aside.replace(folder / name)
    if several:
        where = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        total = sum(map(_size, tensors.values()))
        aside = folder / f".{INDEX}.part"
        aside.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=1))
        aside.replace(folder / INDEX)
        names.append(INDEX)
    sync_folder(folder)
    return tuple(names)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
