"""Gradient recording off for a moment, cheaply enough for every step."""

from typing import Any, cast

import torch

_set_grad_enabled = cast(Any, torch)._C._set_grad_enabled


class NoGrad:
    """`torch.no_grad()` for every step: torch's own makes four objects each time, which small nets feel.

    Entered while it is entered, it would forget what to put back.
    """

    def __enter__(self) -> None:
        self._before = torch.is_grad_enabled()
        _set_grad_enabled(False)

    def __exit__(self, *error: object) -> None:
        _set_grad_enabled(self._before)
