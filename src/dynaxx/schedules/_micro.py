"""The micro scale: a small periodic modulation of the learning rate within what the macro curve says."""

import math
from dataclasses import dataclass
from typing import Literal

from dynaxx.errors import BadInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Micro:
    """1 + a · w(t / p), where the wave w has period 1, starts at 0, rises first and stays in [−1, 1].

    The wave is odd, so the mean factor over a period is 1. Cyclic rates are of Smith (2017), who let the rate vary
    several times over; the default of ± 10 % is a modulation within the macro curve, chosen and not tuned.

    Args:
        period: Steps of a period p, at least 2.
        amplitude: a in [0, 1): the share by which the rate rises and falls.
        shape: "cosine", a cosine a quarter of a period late, or "triangular".

    Raises:
        BadInput: An option is out of range.

    Example:
        >>> [round(Micro(period=8, amplitude=0.2, shape="triangular").factor(t), 3) for t in (0, 1, 2, 4, 6, 8)]
        [1.0, 1.1, 1.2, 1.0, 0.8, 1.0]
    """

    period: int
    amplitude: float = 0.1
    shape: Literal["cosine", "triangular"] = "cosine"

    def __post_init__(self) -> None:
        if isinstance(self.period, bool) or not isinstance(self.period, int) or self.period < 2:
            raise BadInput(f"Micro(period=...) must be an integer of at least 2 steps. Got {self.period!r}.")
        if not 0 <= self.amplitude < 1:
            raise BadInput(f"Micro(amplitude=...) must be a share in [0, 1). Got {self.amplitude}.")
        if self.shape not in ("cosine", "triangular"):
            raise BadInput(f"Micro(shape=...) must be 'cosine' or 'triangular'. Got {self.shape!r}.")

    def factor(self, step: int) -> float:
        """What the rate is multiplied by in a step.

        Args:
            step: Completed optimizer steps when the update is taken, from 0.

        Returns:
            A factor in [1 − a, 1 + a].
        """
        phase = step % self.period / self.period
        if self.shape == "cosine":
            wave = math.cos(2 * math.pi * (phase - 0.25))
        else:
            wave = 1 - abs(4 * ((phase + 0.25) % 1.0) - 2)
        return 1 + self.amplitude * wave
