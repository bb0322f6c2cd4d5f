"""Exponential moving average of the weights, by decay or half-life."""

from typing import ClassVar

from dynaxx.averaging._average import RunningAverage, Source
from dynaxx.errors import BadInput


class Ema(RunningAverage):
    """Exponential moving average: aₙ = d·aₙ₋₁ + (1 − d)·wₙ, with a₁ = w₁, in float32 beside any weights.

    With `warmup` the decay of the n-th step is min(d, (1 + n)/(10 + n)), which soon forgets the first weights; it
    reaches 0.999 after 8990 steps. An average of half-precision weights in their own type does not move at all: at a
    decay of 0.999 its increments are below their resolution.

    Args:
        model: The model, or names and parameters; frozen parameters are left out.
        decay: Kept of the average at each step. 0.999 suits runs of some ten thousand steps: it looks back over 1000.
        half_life: Instead of a decay: steps after which weights count half, decay = 2^(−1/half_life).
        warmup: Whether the decay begins lower.

    Raises:
        BadInput: A number is out of its range, or decay and half_life are both given.

    Example:
        ```python
        ema = Ema(model, half_life=500).attach(optimizer)
        ...                                              # the loop as it was
        with ema.swapped():
            evaluate(model)
        ```

    Reference: Polyak & Juditsky 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage (2015).
    """

    memory: ClassVar[str] = "1 × parameters in float32"

    def __init__(
        self, model: Source, *, decay: float | None = None, half_life: float | None = None, warmup: bool = True
    ) -> None:
        if decay is not None and half_life is not None:
            raise BadInput(f"Ema(decay={decay}, half_life={half_life}): give one of them.")
        if half_life is not None and not half_life > 0:
            raise BadInput(f"Ema(half_life=...) must be more than 0 steps. Got {half_life!r}.")
        if decay is not None and not 0 <= decay < 1:
            raise BadInput(f"Ema(decay=...) must be at least 0 and below 1. Got {decay!r}.")
        super().__init__(model)
        if half_life is not None:
            decay = 0.5 ** (1 / half_life)
        self.decay = 0.999 if decay is None else decay
        """Kept of the average at each step, warm-up aside."""
        self._warmup = warmup

    def share(self, step: int) -> float:
        """1 − d."""
        return 1 - (min(self.decay, (1 + step) / (10 + step)) if self._warmup else self.decay)
