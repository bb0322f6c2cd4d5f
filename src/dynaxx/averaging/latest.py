"""Latest-weight averaging: the equal average of the last few snapshots."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from dynaxx.averaging._average import Source, WeightAverage
from dynaxx.core.arguments import at_least


class Latest(WeightAverage):
    """Latest-weight averaging: the mean of the last `window` snapshots, one every `every` steps.

    Snapshots are kept in the weights' own type, which is exact; their mean is taken in float32. Before the window is
    full it is the mean of those there are.

    Args:
        model: The model, or names and parameters; frozen parameters are left out.
        window: Snapshots, each a copy of the weights. Six is what the paper found best for BERT and ResNet.
        every: Steps between two of them. Ajroldi et al. 2025 (AlgoPerf) find window × every ≈ 1 % of the budget to do
            well: 600 steps of 60,000.

    Raises:
        BadInput: A number is out of its range.

    Example:
        `latest = Latest(model, window=5, every=20).attach(optimizer)`

    Reference: Kaddour 2022, "Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest Weight
    Averaging".
    """

    memory: ClassVar[str] = "window × parameters"

    def __init__(self, model: Source, *, window: int = 6, every: int = 100) -> None:
        self._every = at_least("Latest", "every", every, 1)
        self._snapshots: deque[list[Tensor]] = deque(maxlen=at_least("Latest", "window", window, 1))
        super().__init__(model)

    @property
    def ready(self) -> bool:
        """Whether there is a snapshot."""
        return bool(self._snapshots)

    def take(self, step: int) -> None:
        """Keep a snapshot where one is due."""
        if step % self._every == 0:
            self._snapshots.append(self.weights.copies(wide=False))

    def forget(self) -> None:
        """Drop the snapshots."""
        self._snapshots.clear()

    def current(self) -> Sequence[Tensor]:
        """Their mean, a new copy."""
        mean = self.weights.copies(wide=True)
        for k, snapshot in enumerate(self._snapshots):
            self.weights.blend(mean, snapshot, 1 / (k + 1))
        return mean

    def pack(self) -> dict[str, Any]:
        """The snapshots, oldest first."""
        return {"snapshots": [self.weights.named(snapshot) for snapshot in self._snapshots]}

    def unpack(self, state: Mapping[str, Any]) -> None:
        """Take them up again."""
        snapshots = [self.weights.read(saved, wide=False) for saved in state["snapshots"]]
        self._snapshots.clear()
        self._snapshots.extend(snapshots)
