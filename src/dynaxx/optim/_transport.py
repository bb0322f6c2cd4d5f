"""Moments that move between optimizers: what a switch of the method mid-run hands over."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from dynaxx.errors import BadInput


class Transportable(ABC):
    """An optimizer whose moments another one can go on from.

    Moments in transit are bias-corrected and in the basis of the parameter: the mean of recent gradients and of their
    squares by entry, whatever decay rates the two optimizers have. The one that takes them over carries the count of
    steps along and undoes the correction by its own rates, so that its next step is scaled right.
    """

    @abstractmethod
    def moments(self, parameter: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The moments of a parameter.

        Args:
            parameter: One of the optimizer's.

        Returns:
            First and second moment, copies of the parameter's shape, in float32 at least; None for what the method
            does not keep, or not yet.
        """

    @abstractmethod
    def adopt(
        self,
        parameter: Tensor,
        first: Tensor | None,
        second: Tensor | None,
        steps: int,
        gradients: Sequence[Tensor] | None = None,
    ) -> None:
        """Take over the moments of a parameter in place of what is kept for it.

        Args:
            parameter: One of the optimizer's.
            first: Its first moment; None: the mean of the gradients.
            second: Its second moment; None: the mean square of the gradients.
            steps: How many steps the moments have seen, at least 1.
            gradients: Recent ones at (nearly) the present weights, to make up what is not given; 8 to 32 suffice.

        Raises:
            BadInput: Something the method needs is neither given nor can be made from gradients.
        """


def completed(
    owner: str, first: Tensor | None, second: Tensor | None, steps: int, gradients: Sequence[Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Both moments, missing ones made from gradients.

    Args:
        owner: Name of the optimizer's class.
        first: First moment or None.
        second: Second moment or None.
        steps: Steps that they have seen.
        gradients: To make up missing ones.

    Returns:
        First and second moment.

    Raises:
        BadInput: Fewer than 1 step, or one is missing and there are no gradients.
    """
    if steps < 1:
        raise BadInput(f"{owner}.adopt(steps=...) must be at least 1. Got {steps}. Without moments, start afresh.")
    if first is not None and second is not None:
        return first, second
    if not gradients:
        missing = "first" if first is None else "second"
        raise BadInput(f"{owner}.adopt({missing}=None) needs gradients=..., to estimate the moment from. Give 8 to 32.")
    if first is None:
        first = sum((g.to(copy=True) for g in gradients[1:]), gradients[0].clone()) / len(gradients)
    if second is None:
        second = sum((g.square() for g in gradients[1:]), gradients[0].square()) / len(gradients)
    return first, second
