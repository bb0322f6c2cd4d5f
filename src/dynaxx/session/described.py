"""What the log says of a run before its first step."""

import platform
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dynaxx._version import __version__
from dynaxx.core.parameters import Layout, own_parameters

DROPPING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
INSIDE = (nn.RNNBase, nn.MultiheadAttention)
"""Modules that drop between their layers, or attention weights, by an argument."""


def manifest(
    model: nn.Module,
    layout: Layout,
    optimizer: Optimizer,
    scheduler: Any,
    signals: Sequence[str],
    steps: int | None,
    budget: float,
    facts: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What `run.json` says of a run.

    Args:
        model: The watched model.
        layout: Its parameters by layer.
        optimizer: The innermost optimizer.
        scheduler: The learning-rate scheduler, or None.
        signals: Names of those that are measured.
        steps: Planned optimizer steps, or None.
        budget: Share of the step time that measuring may take.
        facts: What the user adds.

    Returns:
        Plain data. Of the model also its `modules` by class and its `dropout`, since layers are those with parameters
        alone. Of the optimizer also `outside`, parameters of the model that require a gradient and are in no group of
        it, and `foreign`, how many scalar parameters it holds that are not the model's.
    """
    held = own_parameters(optimizer)
    inside, own = {id(p) for p in held}, {id(p) for p in layout.parameters}
    learning = [(n, p) for n, p in zip(layout.names, layout.parameters, strict=True) if p.requires_grad]
    groups = [
        {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in group.items() if k != "params"}
        for group in optimizer.param_groups
    ]
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv else [],
        "steps": steps,
        "budget": budget,
        "model": {
            "class": type(model).__name__,
            "numel": layout.numel,
            "device": str(layout.device),
            "dtype": str(layout.parameters[0].dtype),
            "layers": [
                {"name": layer.name, "kind": layer.kind, "numel": layer.numel, "trainable": layer.trainable}
                for layer in layout.layers
            ],
            "modules": modules(model),
            "dropout": dropout(model),
        },
        "optimizer": {
            "class": type(optimizer).__name__,
            "groups": groups,
            "outside": [name for name, p in learning if id(p) not in inside],
            "foreign": sum(p.numel() for p in held if id(p) not in own),
        },
        "scheduler": None if scheduler is None else type(scheduler).__name__,
        "signals": list(signals),
        "software": {
            "dynaxx": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
        },
        "facts": dict(facts or {}),
    }


def modules(model: nn.Module) -> dict[str, int]:
    """How many modules of each class a model is made of, containers left out.

    Args:
        model: The model.

    Returns:
        Class name → count.

    Example:
        >>> modules(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)))
        {'Linear': 2, 'ReLU': 1}
    """
    return dict(Counter(type(module).__name__ for module in model.modules() if not any(module.children())))


def dropout(model: nn.Module) -> dict[str, float]:
    """Which modules set values to zero at random in training mode, and how many of them.

    What a forward does by `torch.nn.functional.dropout` is not seen.

    Args:
        model: The model.

    Returns:
        Path → probability, of those above zero.

    Example:
        >>> dropout(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3)))
        {'1': 0.3}
    """
    found: dict[str, float] = {}
    for name, module in model.named_modules():
        share = module.p if isinstance(module, DROPPING) else module.dropout if isinstance(module, INSIDE) else 0.0
        if share > 0:
            found[name] = float(share)
    return found
