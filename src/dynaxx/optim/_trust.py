"""What LARS and LAMB share: a rate of its own for each tensor, from the norms of its parameters and of its update."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from dynaxx.errors import BadInput
from dynaxx.optim import _options as options
from dynaxx.optim._groups import decay_groups
from dynaxx.optim._state import Planned


class TrustRatio(Planned):
    """w ← w − η τ u for each tensor, with τ = `trust_ratio(‖w‖, ‖u‖)` for those of two and more dimensions.

    Vectors (biases, scales of norms) and groups with `adapt=False` have τ = 1. Norms are those of whole tensors,
    sharded or not; nothing waits for the device. State is kept in float32 at least.

    Args:
        params: Parameters, named parameters or groups.
        defaults: The options.

    Raises:
        BadInput: An option breaks its rule, or a parameter is complex.
    """

    rules: ClassVar[dict[str, options.Rule]]
    """What each option must be."""
    weight_decay: ClassVar[float]
    """The default."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)

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
            BadInput: An option breaks its rule, or a parameter is complex.
        """
        super().add_param_group(param_group)
        owner, group = type(self).__name__, self.param_groups[-1]
        try:
            options.check_options(owner, group, self.rules)
            for index, parameter in enumerate(group["params"]):
                if not parameter.dtype.is_floating_point:
                    name = options.parameter_name(group, index)
                    raise BadInput(
                        f"{owner}(params=...): {name} is {parameter.dtype}, and must be real floating point. "
                        "Give it to an optimizer of torch, in a second one beside this."
                    )
        except BadInput:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient.

        Args:
            closure: Computes the loss and its gradients anew.

        Returns:
            The loss of the closure, or None.

        Raises:
            BadInput: A gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for _, parameter, gradient in options.dense_gradients(type(self).__name__, group):
                state = self.state[parameter]
                if not state:
                    state.update(self._blank(parameter, group))
                self._update(parameter, gradient, state, group)
        return loss

    @abstractmethod
    def _update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Mapping[str, Any]) -> None:
        """Update one parameter."""


def adapts(parameter: Tensor, group: Mapping[str, Any]) -> bool:
    """Whether a parameter gets a rate of its own.

    Args:
        parameter: Any.
        group: Its group.

    Returns:
        True for two and more dimensions in a group with `adapt`.
    """
    return bool(group["adapt"]) and parameter.dim() >= 2


def norm(tensor: Tensor) -> Tensor:
    """L2 norm of a whole tensor, in float32 at least.

    Args:
        tensor: Any real tensor.

    Returns:
        A scalar on its device.
    """
    return torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))


def trust_ratio(weight: Tensor, update: Tensor, cap: float) -> Tensor:
    """min(cap, ‖w‖ / ‖u‖), and 1 where either norm is 0.

    Args:
        weight: ‖w‖, a scalar.
        update: ‖u‖, a scalar.
        cap: The largest ratio.

    Returns:
        A scalar on the device.

    Example:
        >>> weights, updates = torch.tensor([3.0, 0.0, 9.0]), torch.tensor([2.0, 2.0, 0.1])
        >>> trust_ratio(weights, updates, 10.0)
        tensor([ 1.5000,  1.0000, 10.0000])
    """
    return torch.where((weight > 0) & (update > 0), (weight / update).clamp(max=cap), 1.0)
