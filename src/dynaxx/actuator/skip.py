"""Leave out updates: those whose gradient or batch is not finite, those where it is far too large, or all."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from dynaxx.actuator._norms import Window, counted, mean_and_deviation, total_norm
from dynaxx.core.contracts import Actuation
from dynaxx.core.events import StepView
from dynaxx.errors import BadInput
from dynaxx.numerics.reductions import gradient_norms

_WORDS = {
    "always": "updates left out",
    "non_finite": "updates with a gradient that is not finite left out",
    "gross": "updates whose gradient or batch is not finite, or over ten times the largest of the last ones, left out",
    "outlier": "updates whose gradient is not finite or far larger than the last ones left out",
}
GROSS = 10.0
"""Times the largest of the last norms, or of the last batches' extents, from which one is grossly too large. Of 227
healthy runs of the rescue suite, 90,800 steps, two reach it once, at 10.7 and 15.5, and lose that update. Of 15 spikes
of one tensor's gradient 12 do, at 11 to 155. A tensor's norm against its own largest parts them no better: 17.9 in
healthy runs, 13.8 and 18.7 in spikes that ruined theirs."""
KNOWN = 4
"""Norms, or extents, that must be known before one is grossly too large: before them nothing but NaN is. Waiting for 16
did not lower the 8.3, and let a hundredfold batch at step 12 pass, whose run then ended 9 % above its twin."""
PATIENCE = 3
"""Updates in a row that are left out for their size; the next one is taken, and its size is the new level. One batch is
to blame where the ones after it are not like it; else the weights, or the data, have moved to another place."""


class Skip(Actuation):
    """The optimizer's step changes neither parameters nor moments nor step counts.

    Args:
        when: "non_finite": where the gradient's norm is NaN or infinite; "gross": where the norm before clipping, or
            the largest magnitude in the batch, is not finite, or for at most 3 updates in a row more than 10 times the
            largest of the last `window` ones; "outlier": there, and where the norm is more than `limit` standard
            deviations above the mean of the last `window`, once half of them were seen; "always".
        limit: 6, and the window of 128, are those of OLMo's training code (2024). A norm beyond the limit enters the
            statistics as the limit: one spike hides no other, and a lasting change of level stops being an outlier.
        window: Norms that mean and deviation are taken of.

    Raises:
        BadInput: An option is out of range.
    """

    def __init__(
        self,
        when: Literal["non_finite", "gross", "outlier", "always"] = "non_finite",
        limit: float = 6.0,
        window: int = 128,
    ) -> None:
        if when not in _WORDS:
            words = "'non_finite', 'gross', 'outlier' or 'always'"
            raise BadInput(f"apply('skip', when=...) must be {words}. Got {when!r}.")
        if not (math.isfinite(limit) and limit > 0):
            raise BadInput(f"apply('skip', limit=...) must be positive and finite. Got {limit}.")
        if not isinstance(window, int) or window < 4:
            raise BadInput(f"apply('skip', window=...) must be an integer of at least 4. Got {window!r}.")
        self.when = when
        self.limit = limit
        self._size = window
        self._window, self._norms, self._extents = Window(window), Window(window), Window(window)
        self._row: Tensor | None = None
        self._skip: bool | Tensor = False

    def __str__(self) -> str:
        return _WORDS[self.when]

    def before(self, step: StepView) -> None:
        """Decide on the device."""
        if self.when == "always":
            self._skip = True
        elif self.when == "non_finite":
            self._skip = ~torch.isfinite(gradient_norms(step)).all()
        elif self.when == "gross":
            self._skip = step.memo("skip", lambda: self._gross(step))
        else:
            self._skip = step.memo("skip", lambda: self._gross(step) | self._outlier(total_norm(step)))

    def state_dict(self) -> dict[str, Any]:
        """What outliers are judged by."""
        if self.when not in ("gross", "outlier"):
            return {}
        own = self._window.state_dict() if self.when == "outlier" else {}
        return {**own, "norms": self._norms.state_dict(), "extents": self._extents.state_dict(), "row": self._row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        if "values" in state:
            self._window.load_state_dict(state)
        if "norms" in state:  # older checkpoints have none
            self._norms.load_state_dict(state["norms"])
            self._extents.load_state_dict(state["extents"])
            self._row = state["row"]

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

    def _gross(self, step: StepView) -> Tensor:
        seen = [(self._norms, torch.linalg.vector_norm(gradient_norms(step)))]
        if step.batch.extent is not None:
            seen.append((self._extents, step.batch.extent))
        far = torch.stack([_far(window.values(value), value) for window, value in seen]).any()
        lost = ~torch.stack([torch.isfinite(value) for _, value in seen]).all()
        if step.world_size > 1:  # each rank has batches of its own, and all must decide alike
            said = torch.stack([far, lost]).to(torch.uint8)
            dist.all_reduce(said, op=dist.ReduceOp.MAX)
            far, lost = said.bool()
        row = torch.zeros_like(far, dtype=torch.int64) if self._row is None else self._row.to(far.device)
        far &= row < PATIENCE
        for window, value in seen:
            window.add(torch.where(far, torch.nan, value))
        self._row = torch.where(far, row + 1, 0)
        return far | lost


def _far(values: Tensor, value: Tensor) -> Tensor:
    """Whether a value is grossly larger than all that came before it."""
    largest = torch.where(torch.isnan(values), 0.0, values).amax()
    return (value > GROSS * largest) & (counted(values) >= KNOWN)
