"""The full state of a training: taken, put back, and how exact the continuation can be, in words.

```
model       bare names → tensors, the modules' versions, buffers that are not persistent
optimizer   moments, groups with their rates, names of the parameters in order
scheduler   scaler   extra: name → user's object
random      rank → the global streams of torch, CUDA, NumPy and Python
fingerprint what else the bits depend on
```

Gradients are not part of it: take the state when they have been used, between `zero_grad` and the next backward.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from dynaxx.checkpoints.fingerprint import differences, fingerprint, world
from dynaxx.checkpoints.model_state import capture_model, check_model, restore_model
from dynaxx.checkpoints.objects import capture_object, check_object, restore_object
from dynaxx.checkpoints.optimizer_state import capture_optimizer, check_optimizer, restore_optimizer
from dynaxx.core.isolation import RandomState

ResumeLevel = Literal["exact", "equivalent", "warm"]
"""exact: the same bits as without the interruption. equivalent: every state is there, but device, software, ranks or a
switch differ, so that results agree up to rounding. warm: the weights are there and something of the rest is not."""


def capture(
    model: nn.Module,
    optimizer: Optimizer | None,
    *,
    scheduler: Any = None,
    scaler: Any = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The full state of a training, without a copy: its tensors are the live ones, to be saved before the next step.

    Nothing is drawn from any random stream. Under data parallelism model and optimizer are alike on all ranks: rank 0
    saves, with the other ranks' `random` entries merged into its own.

    Args:
        model: The model, wrapped or bare.
        optimizer: The innermost `torch.optim.Optimizer`; None: the weights only.
        scheduler: The learning-rate scheduler, if there is one.
        scaler: The gradient scaler, if there is one.
        extra: Name → anything else that steers the training: an object with `state_dict` and `load_state_dict`, a
            `torch.Generator`, a `numpy.random.Generator` or `RandomState`, a `random.Random`.

    Returns:
        What `CheckpointStore.save` and `restore` take.

    Raises:
        BadInput: An entry of `extra` has no state.
    """
    random = RandomState.capture()
    return {
        "model": capture_model(model),
        "optimizer": None if optimizer is None else capture_optimizer(optimizer, model),
        "scheduler": None if scheduler is None else capture_object("scheduler", scheduler),
        "scaler": None if scaler is None else capture_object("scaler", scaler),
        "extra": {name: capture_object(f"extra[{name!r}]", thing) for name, thing in (extra or {}).items()},
        "random": {
            world()[0]: {"cpu": random.cpu, "cuda": random.cuda, "numpy": random.numpy, "python": random.python}
        },
        "fingerprint": fingerprint(model, optimizer),
    }


def restore(
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: Optimizer | None,
    *,
    scheduler: Any = None,
    scaler: Any = None,
    extra: Mapping[str, Any] | None = None,
) -> tuple[ResumeLevel, tuple[str, ...]]:
    """Put the state of a training back; everything is checked before anything is overwritten.

    Build model, optimizer and scheduler first, in that order, as for a fresh training. The random streams are put back
    last, so that nothing constructed on the way moves them; iterators over data loaders move them too, so start those
    before, or give each loader a generator and register it in `extra`.

    Args:
        state: What `capture` returned; it stays as it is and can be restored again.
        model: The model, wrapped or bare, whichever it was when saved.
        optimizer: The optimizer; None: the weights only.
        scheduler: As in `capture`.
        scaler: As in `capture`.
        extra: As in `capture`.

    Returns:
        The resume level, and what lowered it.

    Raises:
        BadInput: The state is of another model, optimizer or scheduler, and nothing was changed; or an object of
            `extra` refuses its state, and model and optimizer were not changed.
    """
    level, reasons = resume_level(state, model, optimizer, scheduler=scheduler, scaler=scaler, extra=extra)
    if optimizer is not None:
        saved = _saved(state)
        for name, thing in _steering(scheduler, scaler, extra).items():
            if name in saved:
                restore_object(name, saved[name], thing)
        if state["optimizer"] is not None:
            restore_optimizer(state["optimizer"], optimizer)
    restore_model(state["model"], model)
    random = state["random"].get(world()[0])
    if optimizer is not None and random is not None:
        RandomState(**random).restore()
    return level, reasons


def resume_level(
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: Optimizer | None,
    *,
    scheduler: Any = None,
    scaler: Any = None,
    extra: Mapping[str, Any] | None = None,
) -> tuple[ResumeLevel, tuple[str, ...]]:
    """How exact a continuation would be; nothing is changed.

    Args:
        state: What `capture` returned.
        model: As in `restore`.
        optimizer: As in `restore`.
        scheduler: As in `restore`.
        scaler: As in `restore`.
        extra: As in `restore`.

    Returns:
        The level, and in words what lowered it; no words: exact.

    Raises:
        BadInput: The state is of another model, optimizer or scheduler.
    """
    rounded = check_model(state["model"], model)
    missing = [f"{name} is of another dtype than when saved: values are rounded" for name in rounded]
    if optimizer is None or state["optimizer"] is None:
        return "warm", (*missing, "only the weights are restored")
    check_optimizer(state["optimizer"], optimizer, model)
    saved, now = _saved(state), _steering(scheduler, scaler, extra)
    for name in saved.keys() & now.keys():
        check_object(name, saved[name], now[name])
    missing += [
        f"{name} was not registered when the checkpoint was saved: it starts anew" for name in now if name not in saved
    ]
    missing += [f"{name} was saved and is not given: it starts anew" for name in saved if name not in now]
    scheduled = any("initial_lr" in group for group in state["optimizer"]["param_groups"])
    if scheduled and "scheduler" not in saved.keys() | now.keys():
        missing.append("a learning-rate scheduler was not registered: it starts anew")
    lowered = _lowered(state, fingerprint(model, optimizer))
    return "warm" if missing else "equivalent" if lowered else "exact", (*missing, *lowered)


def _lowered(state: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What makes the bits differ although every state is there."""
    reasons = differences(state["fingerprint"], now)
    rank = world()[0]
    if rank not in state["random"]:
        reasons.append(f"the random streams of rank {rank} were not saved")
    elif torch.cuda.is_available() and len(state["random"][rank]["cuda"]) > torch.cuda.device_count():
        reasons.append("there are fewer CUDA devices than when saved")
    if any(device.startswith("cuda") for device in now["devices"]) and not now["deterministic algorithms"]:
        reasons.append("CUDA kernels may add in another order: torch.use_deterministic_algorithms(True) forbids it")
    return reasons


def _saved(state: Mapping[str, Any]) -> dict[str, Any]:
    return _steering(state["scheduler"], state["scaler"], state["extra"])


def _steering(scheduler: Any, scaler: Any, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """What steers the training besides the optimizer, by the name it has in the state and in messages."""
    named = {"scheduler": scheduler, "scaler": scaler}
    return {name: thing for name, thing in named.items() if thing is not None} | {
        f"extra[{name!r}]": thing for name, thing in (extra or {}).items()
    }
