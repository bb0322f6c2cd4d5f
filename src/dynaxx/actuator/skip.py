"""Leave out updates: those whose gradient is not finite, or all."""

from typing import Literal

import torch
from torch import Tensor

from dynaxx.core.contracts import Actuation
from dynaxx.core.events import StepView
from dynaxx.errors import BadInput
from dynaxx.numerics.reductions import gradient_norms


class Skip(Actuation):
    """The optimizer's step changes neither parameters nor moments nor step counts.

    Args:
        when: "non_finite": where the gradient's norm is NaN or infinite; "always".

    Raises:
        BadInput: `when` is neither.
    """

    def __init__(self, when: Literal["non_finite", "always"] = "non_finite") -> None:
        if when not in ("non_finite", "always"):
            raise BadInput(f"apply('skip', when=...) must be 'non_finite' or 'always'. Got {when!r}.")
        self.when = when
        self._skip: bool | Tensor = False

    def __str__(self) -> str:
        return "updates left out" if self.when == "always" else "updates with a gradient that is not finite left out"

    def before(self, step: StepView) -> None:
        """Decide on the device."""
        self._skip = True if self.when == "always" else ~torch.isfinite(gradient_norms(step)).all()

    @property
    def skips(self) -> bool | Tensor:
        """The decision for this step."""
        return self._skip
