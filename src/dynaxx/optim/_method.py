"""What all optimizers share: the groups of a model, checked options, and the step over the groups."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self, cast

import torch
from torch import nn
from torch.optim.optimizer import ParamsT

from dynaxx.errors import BadInput
from dynaxx.optim import _options as options
from dynaxx.optim._groups import decay_groups
from dynaxx.optim._state import Planned, Precise
from dynaxx.optim._transport import Transportable


class Checked(Precise):
    """An optimizer whose groups keep its rules."""

    rules: ClassVar[dict[str, options.Rule]]
    """What each option must be."""
    weight_decay: ClassVar[float]
    """The default."""

    @classmethod
    def for_model(cls, model: nn.Module, **options: Any) -> Self:
        """All trainable parameters; decay for matrices and kernels only, not for vectors and embeddings.

        Args:
            model: The model; frozen parameters are left out.
            options: Those of the constructor.

        Returns:
            The optimizer.
        """
        decay = options.pop("weight_decay", cls.weight_decay)
        build = cast(Callable[..., Self], cls)  # the constructors of subclasses take the options
        return build(decay_groups(cls.__name__, model, decay), weight_decay=decay, **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, with options and parameters checked.

        Args:
            param_group: `params`, and options that differ from the defaults.

        Raises:
            BadInput: An option or a parameter breaks a rule; the group is not added.
        """
        super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
        except BadInput:
            self.param_groups.pop()
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        options.check_options(type(self).__name__, group, self.rules)


class Elementwise(Transportable, Checked, Planned):
    """One of torch's optimizers, whose arithmetic stays torch's; to be put before it among the bases."""


class Stepping(Checked):
    """One whose arithmetic is its own, group by group.

    Args:
        params: Parameters, named parameters or groups.
        defaults: The options.

    Raises:
        BadInput: An option or a parameter breaks a rule.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient.

        Args:
            closure: Computes the loss and its gradients anew.

        Returns:
            The loss of the closure, or None.

        Raises:
            BadInput: A gradient is sparse, or the method cannot go on from what it has gathered.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step()
        return loss

    def _step(self) -> None:
        for group in self.param_groups:
            self._step_group(group)

    @abstractmethod
    def _step_group(self, group: dict[str, Any]) -> None:
        """Update the parameters of a group that have a gradient."""
