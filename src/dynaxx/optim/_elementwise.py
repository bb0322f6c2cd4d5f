"""What the thin subclasses of torch's own optimizers share: checks, groups, planned bytes."""

from typing import Any, ClassVar, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from dynaxx.errors import BadInput
from dynaxx.optim import _options as options
from dynaxx.optim._groups import decay_groups
from dynaxx.optim._state import Planned
from dynaxx.optim._transport import Transportable


class Elementwise(Transportable, Planned):
    """One of torch's optimizers, whose arithmetic stays torch's; to be put before it among the bases."""

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
        return cls(decay_groups(cls.__name__, model, decay), **{**options, "weight_decay": decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, with the options checked.

        Args:
            param_group: `params`, and options that differ from the defaults.

        Raises:
            BadInput: An option breaks its rule.
        """
        super().add_param_group(param_group)
        try:
            options.check_options(type(self).__name__, self.param_groups[-1], self.rules)
        except BadInput:
            self.param_groups.pop()
            raise


def group_of(optimizer: Optimizer, parameter: Tensor) -> tuple[dict[str, Any], int]:
    """The group that a parameter is in, and its place there.

    Args:
        optimizer: Any.
        parameter: One of its parameters.

    Returns:
        Group and index.

    Raises:
        BadInput: It is not one of them.
    """
    for group in optimizer.param_groups:
        for index, each in enumerate(group["params"]):
            if each is parameter:
                return group, index
    raise BadInput(
        f"{type(optimizer).__name__}: this parameter (shape {tuple(parameter.shape)}) is not one of its own. "
        "Ask for a parameter of its groups."
    )
