"""The state of an optimizer, and back bit for bit: torch's own loading casts moments to the parameters' dtype."""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from dynaxx.core.parameters import bare_name, own_parameters
from dynaxx.errors import BadInput

_IMPLEMENTATIONS = ("foreach", "fused")


def capture_optimizer(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """The state of an optimizer.

    Args:
        optimizer: The innermost `torch.optim.Optimizer`.
        model: The model, for the names of the parameters.

    Returns:
        `kind`: its class, `names`: the parameters by group, `state` and `param_groups` as in `state_dict()`,
        `on_cpu`: parameter index → keys of the state tensors that are on the CPU although the parameter is not.
    """
    state = optimizer.state_dict()
    on_cpu = {
        index: [key for key, value in state["state"][index].items() if isinstance(value, Tensor) and value.is_cpu]
        for index, parameter in _indexed(state, optimizer)
        if index in state["state"] and not parameter.is_cpu
    }
    return {
        "kind": type(optimizer).__qualname__,
        "names": _names(optimizer, model),
        "state": state["state"],
        "param_groups": state["param_groups"],
        "on_cpu": on_cpu,
    }


def check_optimizer(saved: Mapping[str, Any], optimizer: Optimizer, model: nn.Module) -> None:
    """Compare a saved state with an optimizer, before anything is overwritten.

    Args:
        saved: What `capture_optimizer` returned.
        optimizer: The optimizer to restore.
        model: The model, for the names of the parameters.

    Raises:
        BadInput: It is of another class, or holds other parameters or the same ones in another order.
    """
    remedy = "Build it as it was when the checkpoint was saved, or give optimizer=None to restore the weights only."
    if saved["kind"] != type(optimizer).__qualname__:
        raise BadInput(
            f"restore(optimizer=...): the checkpoint was saved with {saved['kind']}. "
            f"Got {type(optimizer).__qualname__}. {remedy}"
        )
    then, now = saved["names"], _names(optimizer, model)
    if [len(group) for group in then] != [len(group) for group in now]:
        raise BadInput(
            f"restore(optimizer=...): the checkpoint has parameter groups of {[len(g) for g in then]} parameters, the "
            f"optimizer of {[len(g) for g in now]}. {remedy}"
        )
    for group, (theirs, ours) in enumerate(zip(then, now, strict=True)):
        for place, (a, b) in enumerate(zip(theirs, ours, strict=True)):
            if a != b:
                raise BadInput(
                    f"restore(optimizer=...): parameter {place} of group {group} was {a!r} and is {b!r}: its moments "
                    f"would go to another parameter. {remedy}"
                )


def restore_optimizer(saved: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Put a saved state back, every tensor with its own dtype and in memory of its own.

    Load the scheduler before: constructing one after this would reset the learning rates.

    Args:
        saved: What `capture_optimizer` returned, checked by `check_optimizer`.
        optimizer: The optimizer.

    Raises:
        BadInput: The optimizer's loading changed a learning rate.
    """
    own = [dict(group) for group in optimizer.param_groups]
    groups = [
        # fused or foreach is as it was constructed: a gradient scaler has looked at it there
        {**then, **{key: now[key] for key in _IMPLEMENTATIONS if key in then and key in now}}
        for then, now in zip(saved["param_groups"], own, strict=True)
    ]
    # Shallow copies: torch keeps what it need not cast, and `saved` must serve again after this training went on.
    loose = {key: deepcopy(value) for key, value in saved["state"].items() if not isinstance(key, int)}
    optimizer.load_state_dict({"state": {**saved["state"], **loose}, "param_groups": groups})
    for now, before in zip(optimizer.param_groups, own, strict=True):
        for key, value in now.items():
            if isinstance(value, Tensor) and isinstance(before.get(key), Tensor):  # a rate that is a tensor
                now[key] = value.to(before[key].device)
    same = implementation(saved["param_groups"]) == implementation(own)
    copies: dict[int, Tensor] = {}
    for index, parameter in _indexed(saved, optimizer):
        loaded = optimizer.state[parameter] if index in saved["state"] else {}
        for key in loaded.keys() & saved["state"].get(index, {}).keys():
            if same or key != "step":  # implementations keep it on devices, and in dtypes, of their own
                on_cpu = key in saved["on_cpu"].get(index, ())
                loaded[key] = _exact(loaded[key], saved["state"][index][key], on_cpu, copies)
    for now, then in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        if "lr" in then and float(now["lr"]) != float(then["lr"]):
            raise BadInput(
                f"restore(optimizer={type(optimizer).__qualname__}): after load_state_dict the learning rate is "
                f"{float(now['lr'])}; {float(then['lr'])} was saved. One of its hooks changes it: take it out."
            )


def implementation(groups: Iterable[Mapping[str, Any]]) -> list[str]:
    """Which implementation each parameter group asks for; they round differently.

    Args:
        groups: The parameter groups of an optimizer.

    Returns:
        Per group "fused", "foreach", "loop" or "default".

    Example:
        >>> implementation([{"lr": 0.1, "foreach": None, "fused": True}, {"lr": 0.1, "foreach": False, "fused": None}])
        ['fused', 'loop']
    """
    loops = {None: "default", False: "loop", True: "foreach"}
    return ["fused" if group.get("fused") else loops[group.get("foreach")] for group in groups]


def _exact(loaded: Any, saved: Any, on_cpu: bool, copies: dict[int, Tensor]) -> Any:
    """`loaded` with its tensors replaced by copies of the saved ones, dtype and all; shared ones stay shared."""
    if isinstance(saved, Tensor) and isinstance(loaded, Tensor) and saved.shape == loaded.shape:
        if id(saved) not in copies:
            copies[id(saved)] = saved.detach().to("cpu" if on_cpu else loaded.device, copy=True)
        return copies[id(saved)]
    if isinstance(saved, str):  # torch rebuilds every iterable from a generator, strings too
        return saved
    if isinstance(saved, Mapping) and isinstance(loaded, dict):
        for key in saved.keys() & loaded.keys():
            loaded[key] = _exact(loaded[key], saved[key], on_cpu, copies)
    elif isinstance(saved, list) and isinstance(loaded, list) and len(saved) == len(loaded):
        loaded[:] = [_exact(a, b, on_cpu, copies) for a, b in zip(loaded, saved, strict=True)]
    elif type(saved) is tuple and type(loaded) is tuple and len(saved) == len(loaded):
        return tuple(_exact(a, b, on_cpu, copies) for a, b in zip(loaded, saved, strict=True))
    return loaded


def _indexed(state: Mapping[str, Any], optimizer: Optimizer) -> Iterator[tuple[int, Tensor]]:
    """Index in the state_dict and parameter, in the order of the groups."""
    indices = [index for group in state["param_groups"] for index in group["params"]]
    return zip(indices, own_parameters(optimizer), strict=True)


def _names(optimizer: Optimizer, model: nn.Module) -> list[list[str]]:
    names = {id(parameter): bare_name(name) for name, parameter in model.named_parameters()}
    return [[names.get(id(p), "(not in the model)") for p in group["params"]] for group in optimizer.param_groups]
