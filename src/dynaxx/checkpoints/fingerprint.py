"""What the bits of a training depend on besides its state: software, device, threads, switches, ranks."""

import contextlib
import functools
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from dynaxx.checkpoints.optimizer_state import implementation

Fingerprint = dict[str, Any]
"""Name of the fact → string, number, truth value or list of strings."""


def fingerprint(model: nn.Module, optimizer: Optimizer | None) -> Fingerprint:
    """The facts as they are now.

    Args:
        model: The model, for its devices and whether it is compiled.
        optimizer: The optimizer, for which implementation it asks for; None: without.

    Returns:
        The facts by name.
    """
    devices = sorted({_described(tensor.device) for tensor in (*model.parameters(), *model.buffers())})
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "cuda": torch.version.cuda,
        "devices": devices,
        "threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "default dtype": str(torch.get_default_dtype()),
        "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "world size": world()[1],
        "compiled": any(
            type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None  # pyright: ignore[reportPrivateUsage]
            for module in model.modules()
        ),
        "optimizer implementation": implementation(optimizer.param_groups) if optimizer is not None else [],
    }


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two fingerprints do not share, in words.

    Args:
        saved: The one in the checkpoint.
        now: The one of this process.

    Returns:
        One sentence per fact.

    Example:
        >>> differences({"threads": 1, "torch": "2.13.0"}, {"threads": 2, "torch": "2.13.0"})
        ['threads: 1 when saved, 2 now']
    """
    facts = [*saved, *(fact for fact in now if fact not in saved)]
    return [
        f"{fact}: {_said(saved.get(fact))} when saved, {_said(now.get(fact))} now"
        for fact in facts
        if saved.get(fact) != now.get(fact)
    ]


def world() -> tuple[int, int]:
    """This process' rank and the number of ranks; (0, 1) without torch.distributed."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _said(value: Any) -> str:
    return ", ".join(cast("list[str]", value)) or "none" if isinstance(value, list) else str(value)


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return device.type
    # Matrix libraries choose their kernels by the processor, and torch by its instruction set.
    return f"cpu: {_processor()}, {torch.backends.cpu.get_cpu_capability()}"


@functools.cache  # the file has a page per core
def _processor() -> str:
    with contextlib.suppress(OSError):  # Linux; other systems answer the portable question
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
