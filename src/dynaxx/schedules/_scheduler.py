"""Any curve as a learning-rate scheduler of torch."""

from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dynaxx.core.methods import Curve
from dynaxx.errors import BadInput


class CurveLR(LRScheduler):
    """η = base rate · curve.factor(step) in every group; made by `as_scheduler`.

    Its state is the step and the base rates: plain numbers. The curve is configuration and is given anew on resume.
    """

    def __init__(self, optimizer: Optimizer, curve: Curve, last_epoch: int = -1) -> None:
        self.curve = curve
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rates of the step to come, one per group."""
        factor = self.curve.factor(self.last_epoch)
        return [base * factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Plain values, without the curve."""
        return {key: value for key, value in vars(self).items() if key not in ("optimizer", "curve")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state; the curve stays the one that was given."""
        vars(self).update(state_dict)


def as_scheduler(optimizer: Optimizer, curve: Curve, *, last_epoch: int = -1) -> CurveLR:
    """A curve as a scheduler to step once per optimizer step; each group's rate is the peak.

    It goes into `SequentialLR` and `ChainedScheduler` as a `LambdaLR` does.

    Args:
        optimizer: Its groups' rates are the peaks; warm-up lowers them at once, as torch's schedulers do.
        curve: The curve.
        last_epoch: As in torch's schedulers: completed steps − 1 where the optimizer has been scheduled before.

    Returns:
        The scheduler.

    Raises:
        BadInput: An argument is of another kind.

    Example:
        >>> from dynaxx.schedules.cosine import Cosine
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
        >>> as_scheduler(optimizer, Cosine(steps=100, warmup=4)).get_last_lr()
        [0.1]
    """
    if not isinstance(optimizer, Optimizer):
        raise BadInput(
            f"as_scheduler(optimizer=...) must be a torch.optim.Optimizer. Got {type(optimizer).__name__}. "
            "Of a wrapper give the optimizer within."
        )
    if not isinstance(curve, Curve):
        raise BadInput(f"as_scheduler(curve=...) must be a curve of dynaxx.schedules. Got {curve!r}.")
    return CurveLR(optimizer, curve, last_epoch)
