"""Leave out updates: those whose gradient is not finite, those whose gradient is far too large, or all."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from dynaxx.actuator._norms import Window, counted, mean_and_deviation, total_norm
from dynaxx.core.contracts import Actuation
from dynaxx.core.events import StepView
from dynaxx.errors import BadInput
from dynaxx.numerics.reductions import gradient_norms

_WORDS = {
    "always": "updates left out",
    "non_finite": "updates with a gradient that is not finite left out",
    "outlier": "updates whose gradient is not finite or far larger than the last ones left out",
}


class Skip(Actuation):
    """The optimizer's step changes neither parameters nor moments nor step counts.

    Args:
        when: "non_finite": where the gradient's norm is NaN or infinite; "outlier": there, and where it is more than
            `limit` standard deviations above the mean of the last `window` norms, once half of them were seen;
            "always".
        limit: 6, and the window of 128, are those of OLMo's training code (2024). A norm beyond the limit enters the
            statistics as the limit: one spike hides no other, and a lasting change of level stops being an outlier.
        window: Norms that mean and deviation are taken of.

    Raises:
        BadInput: An option is out of range.
    """

    def __init__(
        self, when: Literal["non_finite", "outlier", "always"] = "non_finite", limit: float = 6.0, window: int = 128
    ) -> None:
        if when not in _WORDS:
            raise BadInput(f"apply('skip', when=...) must be 'non_finite', 'outlier' or 'always'. Got {when!r}.")
        if not (math.isfinite(limit) and limit > 0):
            raise BadInput(f"apply('skip', limit=...) must be positive and finite. Got {limit}.")
        if not isinstance(window, int) or window < 4:
            raise BadInput(f"apply('skip', window=...) must be an integer of at least 4. Got {window!r}.")
        self.when = when
        self.limit = limit
        self._size = window
        self._window = Window(window)
        self._skip: bool | Tensor = False

    def __str__(self) -> str:
        return _WORDS[self.when]

    def before(self, step: StepView) -> None:
        """Decide on the device."""
        if self.when == "always":
            self._skip = True
        elif self.when == "non_finite":
            self._skip = ~torch.isfinite(gradient_norms(step)).all()
        else:
            self._skip = step.memo("skip", lambda: self._outlier(total_norm(step)))

    def state_dict(self) -> dict[str, Any]:
        """The norms that outliers are judged by."""
        return self._window.state_dict() if self.when == "outlier" else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        if state:
            self._window.load_state_dict(state)

    @property
    def skips(self) -> bool | Tensor:
        """The decision for this step."""
        return self._skip

    def _outlier(self, norm: Tensor) -> Tensor:
        values = self._window.values(norm)
        mean, deviation = mean_and_deviation(values)
        limit = mean + self.limit * deviation
        far = (norm > limit) & (counted(values) >= self._size // 2)
        finite = torch.isfinite(norm)
        self._window.add(torch.where(far & finite, limit, norm))
        return far | ~finite
