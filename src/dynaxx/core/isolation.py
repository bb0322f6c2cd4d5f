"""Leave no trace: random streams and training modes are the same after as before."""

import ctypes
import random
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

_TWISTER = 4 * (624 + 1)  # bytes: the words of NumPy's mt19937_state, then the position


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomState:
    """The state of every global random stream: torch on CPU and on each CUDA device, NumPy's legacy one, Python's.

    Args:
        cpu: uint8 of shape (5056,), the state of the CPU generator.
        cuda: One uint8 tensor per CUDA device that was initialised; empty otherwise.
        numpy: `(name, key, position, has_gauss, cached_gaussian)` of `numpy.random.get_state`; empty: not captured.
        python: What `random.getstate` returns.
    """

    cpu: torch.Tensor
    cuda: tuple[torch.Tensor, ...]
    numpy: tuple[Any, ...]
    python: tuple[Any, ...]

    @classmethod
    def capture(cls, *, numpy: bool = True) -> "RandomState":
        """The streams as they stand; drawing nothing from them.

        Args:
            numpy: NumPy's too, which takes some 100 µs, ten times as long as all others on a CPU (`numpy_words`).
        """
        cuda = (
            tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() and torch.cuda.is_initialized() else ()
        )
        drawn = tuple(np.random.get_state()) if numpy else ()  # noqa: NPY002
        return cls(cpu=torch.get_rng_state(), cuda=cuda, numpy=drawn, python=random.getstate())

    def restore(self) -> None:
        """Put every stream back. CUDA states of devices that this process lacks are left out."""
        torch.set_rng_state(self.cpu)
        if self.cuda and torch.cuda.is_available():
            for device, state in enumerate(self.cuda[: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(state, device)
        if self.numpy:
            np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)


def numpy_words() -> bytes | None:
    """What tells whether NumPy's global stream has moved, in a microsecond: its words and its position in them.

    Returns:
        Bytes; None where the stream is no Mersenne twister, and only `RandomState.capture` can tell.
    """
    generator: Any = np.random.mtrand.get_bit_generator()  # pyright: ignore[reportAttributeAccessIssue]  (of the legacy stream)
    return ctypes.string_at(generator.ctypes.state_address, _TWISTER) if type(generator) is np.random.MT19937 else None


def seed_streams(seed: int) -> None:
    """Seed torch's global streams on the CPU and on every device in use.

    `torch.manual_seed` does so too, but formats a traceback at each call while CUDA is not in use, which takes as long
    as some forwards of a small net.

    Args:
        seed: In [0, 2⁶³).
    """
    if torch.cuda.is_initialized() or _other_accelerator():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@cache
def _other_accelerator() -> bool:
    """Whether this machine computes on a device other than CUDA's; asked once, since it takes as long as a seeding."""
    return torch.accelerator.is_available() and not torch.cuda.is_available()


@contextmanager
def isolated_random() -> Generator[None]:
    """Whatever is drawn within is undone: the global random streams go on as if nothing had happened."""
    state = RandomState.capture()
    try:
        yield
    finally:
        state.restore()


@contextmanager
def evaluation(model: nn.Module) -> Generator[None]:
    """Evaluation mode without gradients; every module's mode and the random streams are put back after.

    Args:
        model: The model; modules that were frozen in evaluation mode stay so.
    """
    modes = [(module, module.training) for module in model.modules()]
    with isolated_random(), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
