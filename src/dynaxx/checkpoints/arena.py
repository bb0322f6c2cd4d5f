"""Memory that a state is copied into, kept from one save to the next, so that training may change the state at once."""

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes: a cache line, and a multiple of every dtype's size


class Arena:
    """One copy of a state.

    Copies from a CUDA device go to page-locked memory in the order of the device's current stream: a step that follows
    on that stream changes nothing that has not been copied, and nobody waits but `wait`.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._copied: list[torch.Event] = []

    def hold(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy tensors; what was held before is overwritten.

        Args:
            tensors: Name → contiguous tensor.

        Returns:
            Name → copy on the CPU, whole once `wait` has returned.

        Raises:
            RuntimeError: There is not enough memory.
        """
        sizes = [-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors.values()]
        devices = {tensor.device for tensor in tensors.values() if tensor.is_cuda}
        # A caller's inference mode or default device must not stick to memory that outlives the call.
        with torch.inference_mode(mode=False), torch.no_grad():
            self._reserve(sum(sizes), bool(devices))
            copies: dict[str, Tensor] = {}
            for (name, tensor), start in zip(tensors.items(), itertools.accumulate(sizes, initial=0), strict=False):
                part = self._memory[start : start + tensor.nbytes]
                copies[name] = part.view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=tensor.is_cuda)
            self._copied = [torch.cuda.current_stream(device).record_event() for device in devices]
        return copies

    def wait(self) -> None:
        """Wait until the copies are there."""
        for event in self._copied:
            event.synchronize()

    def _reserve(self, size: int, pinned: bool) -> None:
        if self._memory.numel() < size or self._memory.is_pinned() != pinned:
            self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")  # not both at once
            self._memory = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned)
