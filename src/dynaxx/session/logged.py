"""Takes the user's values: any single number in, no waiting, and a word about what is none."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from dynaxx.errors import BadInput
from dynaxx.runlog.recorder import Recorder


class Logged:
    """The values that the loop logs.

    Args:
        recorder: Where they go.
        reserved: Names of columns that signals have; a user's value of such a name is `user.<name>`.
        warn: Called once per name whose later values are no single numbers.
    """

    def __init__(self, recorder: Recorder, reserved: frozenset[str], warn: Callable[[str], None]) -> None:
        self.refused: dict[str, int] = {}
        """Values that were left out, by name."""
        self._recorder, self._reserved, self._warn = recorder, reserved, warn
        self._columns: dict[str, str] = {}

    def take(self, step: int, values: Mapping[str, Any]) -> None:
        """Take values.

        Args:
            step: The step that they belong to.
            values: Name → number or tensor with one element.

        Raises:
            BadInput: A name cannot be one, or its first value is not a single number.
        """
        for name, value in values.items():
            number = _number(value)
            if number is None:
                self._refuse(name, value)
            else:
                self._recorder.log(step, self._columns.get(name) or self._admit(name), number)

    def _admit(self, name: str) -> str:
        """The column of a name that is logged for the first time."""
        if not name or not name.isprintable():
            raise BadInput(f"run.log({name!r}=...): the name of a column must be printable and not empty.")
        taken = name in self._reserved or name in ("step", "wall")
        column = self._columns[name] = f"user.{name}" if taken else name
        return column

    def _refuse(self, name: str, value: Any) -> None:
        if name not in self._columns and name not in self.refused:
            what = (
                f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor | np.ndarray) else type(value).__name__
            )
            self.refused[name] = 0
            raise BadInput(
                f"run.log({name}=...) must be a number or a tensor with one element. Got {what}. Take its mean."
            )
        self.refused[name] = self.refused.get(name, 0) + 1
        if self.refused[name] == 1:
            self._warn(
                f"run.log({name}=...) was given something that is not a single number; such values are left out."
            )


def _number(value: Any) -> torch.Tensor | float | None:
    """A single number in a form that later changes of the caller's object cannot touch; None for anything else."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1 or value.is_complex():
            return None
        if type(value) is torch.Tensor and value.is_cpu:
            return value.item()  # nothing to wait for, and a third of the price of a copy
        return value.detach().clone()
    if isinstance(value, bool | int | float | np.number | np.bool_):
        return float(value)
    if isinstance(value, np.ndarray) and value.size == 1:
        return float(value.reshape(()))
    return None
