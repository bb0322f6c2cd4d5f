"""Whether numbers are finite, told from their bits while these are in the cache for hashing."""

from typing import Any, Literal

import numpy as np

Word = Literal["", "inf", "nan"]
"""What is the worst of a tensor: nothing, an infinity, something that is not a number."""
_KINDS: dict[str, tuple[type[Any], int, int]] = {
    "F64": (np.uint64, 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
    "F8_E5M2": (np.uint8, 0x7F, 0x7C),
}
"""dtype in a tensor file → integers of its width, all bits but the sign, the bits of infinity. By IEEE 754 (2019) the
magnitudes of one format are ordered as these integers are, infinity above all numbers and every NaN above infinity."""


class Finiteness:
    """The largest magnitude of a tensor, by its bits, chunk by chunk.

    One pass of integer operations: 6 ms of processor time for 64 MiB that are hashed at the same time, and none of
    `torch.isfinite`'s copies. It says nothing of integers, and takes 8-bit floats without an infinity for finite.

    Args:
        dtype: The tensor file's name of the dtype ("BF16").
        chunk: Bytes of a chunk at most.

    Example:
        >>> seen = Finiteness("F32", 8)
        >>> seen.update(memoryview(np.array([1.0, -np.inf], np.float32)).cast("B"))
        >>> seen.word
        'inf'
    """

    def __init__(self, dtype: str, chunk: int) -> None:
        self._kind = _KINDS.get(dtype)
        self._largest = 0
        if self._kind is not None:
            self._scratch = np.empty(chunk // np.dtype(self._kind[0]).itemsize, self._kind[0])

    def update(self, chunk: memoryview) -> None:
        """Look at the next bytes.

        Args:
            chunk: Bytes of whole numbers.
        """
        if self._kind is not None and len(chunk):
            integers, magnitude, _ = self._kind
            bits = np.frombuffer(chunk, integers)
            found = np.bitwise_and(bits, integers(magnitude), out=self._scratch[: len(bits)]).max()
            self._largest = max(self._largest, int(found))

    @property
    def word(self) -> Word:
        """The worst so far."""
        if self._kind is None or self._largest < self._kind[2]:
            return ""
        return "inf" if self._largest == self._kind[2] else "nan"
