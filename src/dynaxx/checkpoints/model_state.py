"""The state of a model under its bare names, and back into a model that is wrapped, compiled or bare."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from dynaxx.core.parameters import bare_name, is_sharded
from dynaxx.errors import BadInput, NotApplicable

_SHOWN = 5


def capture_model(model: nn.Module) -> dict[str, Any]:
    """The state of a model.

    Buffers that are not persistent are kept too: most are constants, but where one is not, leaving it out would change
    the continuation without a word.

    Args:
        model: The model, wrapped (compiled, data-parallel) or bare.

    Returns:
        `state`: bare name → tensor (or a module's extra state), `metadata`: the modules' versions, `buffers`: those
        that are not persistent. The tensors are the model's own.
    """
    state = cast("OrderedDict[str, Any]", model.state_dict())
    bare = _bare_names(state)
    return {
        "state": {bare[name]: value for name, value in state.items()},
        "metadata": {bare_name(path): versions for path, versions in _metadata(state).items()},
        "buffers": {bare_name(name): buffer for name, buffer in _transient_buffers(model, state).items()},
    }


def check_model(saved: Mapping[str, Any], model: nn.Module) -> list[str]:
    """Compare a saved state with a model, before anything is overwritten.

    Args:
        saved: What `capture_model` returned.
        model: The model to restore.

    Returns:
        Names whose dtype differs, so that values would be rounded.

    Raises:
        BadInput: Names are missing or unexpected, or shapes differ.
        NotApplicable: The model is sharded, and the saved state is not.
    """
    if any(map(is_sharded, model.parameters())) and not any(map(is_sharded, saved["state"].values())):
        raise NotApplicable(
            f"restore(model={type(model).__name__}): the model is sharded (FSDP2 or tensor parallelism) and the state "
            "holds whole tensors. Read it with ShardedStore.load(like=capture(model, optimizer))."
        )
    own = model.state_dict()
    bare = _bare_names(own)
    own: dict[str, Any] = {bare[name]: value for name, value in own.items()}
    state = saved["state"]
    problems: list[str] = []
    if missing := [name for name in own if name not in state]:
        problems.append(f"the checkpoint lacks {_listed(missing)}")
    if unexpected := [name for name in state if name not in own]:
        problems.append(f"the model lacks {_listed(unexpected)}")
    # An uninitialised (lazy) parameter has no shape yet and takes the saved one.
    pairs = {
        name: (value, state[name])
        for name, value in own.items()
        if isinstance(value, Tensor) and isinstance(state.get(name), Tensor) and not nn.parameter.is_lazy(value)  # pyright: ignore[reportArgumentType]
    }
    if shapes := [
        f"{name} {tuple(theirs.shape)} saved, {tuple(ours.shape)} in the model"
        for name, (ours, theirs) in pairs.items()
        if ours.shape != theirs.shape
    ]:
        problems.append(f"shapes differ: {_listed(shapes)}")
    if problems:
        raise BadInput(
            f"restore(model={type(model).__name__}): the checkpoint is of another model: {'; '.join(problems)}. "
            "Build the model as it was when the checkpoint was saved."
        )
    return [name for name, (ours, theirs) in pairs.items() if ours.dtype != theirs.dtype]


def restore_model(saved: Mapping[str, Any], model: nn.Module) -> None:
    """Copy a saved state into a model that `check_model` has passed.

    Args:
        saved: What `capture_model` returned.
        model: The model; its tensors keep their addresses.
    """
    own = cast("OrderedDict[str, Any]", model.state_dict())
    state: OrderedDict[str, Any] = OrderedDict((raw, saved["state"][bare]) for raw, bare in _bare_names(own).items())
    metadata = {path: saved["metadata"].get(bare_name(path), {}) for path in _metadata(own)}
    state._metadata = metadata  # pyright: ignore[reportAttributeAccessIssue]
    model.load_state_dict(state, strict=True)
    for name, buffer in _transient_buffers(model, own).items():
        value = saved["buffers"].get(bare_name(name))
        if value is not None:
            path, _, leaf = name.rpartition(".")
            _restore_buffer(model.get_submodule(path), leaf, buffer, value)


@torch.no_grad()
def _restore_buffer(owner: nn.Module, leaf: str, buffer: Tensor, value: Tensor) -> None:
    if buffer.shape != value.shape or buffer.dtype != value.dtype:  # one that grows
        setattr(owner, leaf, value.to(buffer.device, copy=True))
    elif not torch.equal(buffer, value.to(buffer.device)):  # constants stay untouched: they may be expanded views
        buffer.copy_(value)


def _bare_names(state: Mapping[str, Any]) -> dict[str, str]:
    """Name in the state → bare name; the names themselves if two of them would become one."""
    bare = {name: bare_name(name) for name in state}
    return bare if len(set(bare.values())) == len(bare) else {name: name for name in state}


def _metadata(state: Any) -> dict[str, Any]:
    """What torch attaches to a state_dict: the version of each module's format."""
    return dict(getattr(state, "_metadata", {}))


def _transient_buffers(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in model.named_buffers(remove_duplicate=False) if name not in state}


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
