"""Stochastic weight averaging: the equal average of the weights from some step on."""

from typing import ClassVar

from dynaxx.averaging._average import RunningAverage, Source
from dynaxx.core.arguments import at_least


class Swa(RunningAverage):
    """Stochastic weight averaging: the mean of the weights behind steps start + every, start + 2·every, ….

    It wants a rate that keeps the weights moving: constant, or the low ends of cycles (then `Cyclic` names them).
    Where the training loss is near zero there is little to average.

    Args:
        model: The model, or names and parameters; frozen parameters are left out.
        start: Steps before the first to be averaged. The paper takes the last quarter of the training.
        every: Steps between two of the averaged; the paper's is one epoch.

    Raises:
        BadInput: A number is out of its range.

    Example:
        `swa = Swa(model, start=7500, every=100).attach(optimizer)`

    Reference: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization".
    """

    memory: ClassVar[str] = "1 × parameters in float32"

    def __init__(self, model: Source, *, start: int = 0, every: int = 1) -> None:
        self._start, self._every = at_least("Swa", "start", start, 0), at_least("Swa", "every", every, 1)
        super().__init__(model)

    def share(self, step: int) -> float | None:
        """1/k for the k-th."""
        past = step - self._start
        return 1 / (self.count + 1) if past > 0 and past % self._every == 0 else None
