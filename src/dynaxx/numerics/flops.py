"""Floating-point operations of whatever runs within, counted by shape."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

PEAK = {
    "B200": 2250e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIE": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100 PCIE": 112e12,
    "V100": 125e12,
    "T4": 65e12,
}
"""Dense 16-bit peak of accelerators in FLOP/s from NVIDIA's data sheets, by words of the name; the first fit holds."""


def _attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> int:
    del rest
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _recurrent(rows: Tensor, *rest: Any) -> int:
    """Two operations per weight of a fused recurrent layer and row of its input, (steps, batch) or packed."""
    given = rest[0] if isinstance(rest[0], list | tuple) else rest[:2]
    weights = sum(w.numel() for w in cast(Sequence[Tensor], given) if w.dim() == 2)
    return 2 * weights * (rows.numel() // rows.shape[-1])


_MISSING: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent,
    torch.ops.aten._cudnn_rnn: _recurrent,
}
"""What torch's own registry lacks."""


class CountFlops(TorchDispatchMode):
    """Counts the multiply-adds (two operations each) of matrix products, convolutions, attention and recurrent layers.

    Elementwise work is left out, as in every published model-FLOP figure. A backward costs twice its forward.

    Example:
        >>> with CountFlops() as flops:
        ...     _ = torch.ones(4, 8) @ torch.ones(8, 2)
        >>> flops.total
        128
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        count = cast(Callable[..., int] | None, flop_registry.get(packet))
        if count is not None:
            self.total += int(count(*args, **(kwargs or {}), out_val=out))
        elif packet in _MISSING:
            self.total += _MISSING[packet](*args)
        return out


def peak(device: torch.device) -> float | None:
    """Peak of a device in FLOP/s, for the utilisation; None where it is not known (every CPU).

    Args:
        device: Where the model lies.

    Returns:
        Dense 16-bit peak.
    """
    if device.type != "cuda":
        return None
    words = set(torch.cuda.get_device_name(device).upper().replace("-", " ").split())
    return next((flops for name, flops in PEAK.items() if words.issuperset(name.split())), None)
