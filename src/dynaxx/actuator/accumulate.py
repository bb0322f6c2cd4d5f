"""Take several batches to an update, with the learning rates that go with it; only in a Task's own loop."""

import math

from dynaxx.core.contracts import Actuation
from dynaxx.core.events import StepView
from dynaxx.core.rates import RateFactors
from dynaxx.errors import BadInput


class Accumulate(Actuation):
    """The gradient of an update is the mean over `batches` batches; η ← rate · η.

    A loop of the user's own decides itself how many batches it takes, and the session refuses this action there.

    Args:
        batches: Batches per update, at least 1, whatever the loop began with.
        rate: What the learning rates are multiplied by: 1 where the noise is to become smaller; to keep it as it is
            and take longer steps, `batches` for SGD (Goyal et al. 2017) or its root for Adam (Malladi et al. 2022).

    Raises:
        BadInput: An option is out of range.
    """

    of_gradient = False

    def __init__(self, batches: int, rate: float = 1.0) -> None:
        if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
            raise BadInput(f"apply('accumulate', batches=...) must be an integer of at least 1. Got {batches!r}.")
        if not (math.isfinite(rate) and rate > 0):
            raise BadInput(f"apply('accumulate', rate=...) must be positive and finite. Got {rate}.")
        self.batches = batches
        self._factors = RateFactors(reactive=float(rate))

    def __str__(self) -> str:
        return f"{self.batches} batches per update, learning rates × {self._factors.reactive:g}"

    def before(self, step: StepView) -> None:
        """Put the factor into the step; the loop asks for the batches itself."""
        step.rates = step.rates * self._factors
