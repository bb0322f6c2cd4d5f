"""What LARS and LAMB share: a rate of its own for each tensor, from the norms of its parameters and of its update."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dynaxx.optim import _options as options
from dynaxx.optim._method import Stepping
from dynaxx.optim._state import Planned


class TrustRatio(Stepping, Planned):
    """w ← w − η τ u for each tensor, with τ = `trust_ratio(‖w‖, ‖u‖)` for those of two and more dimensions.

    Vectors (biases, scales of norms) and groups with `adapt=False` have τ = 1. Norms are those of whole tensors,
    sharded or not; nothing waits for the device. State is kept in float32 at least.

    Args:
        params: Parameters, named parameters or groups.
        defaults: The options.

    Raises:
        BadInput: An option breaks its rule, or a parameter is complex.
    """

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        options.check_real(type(self).__name__, group)

    def _step_group(self, group: dict[str, Any]) -> None:
        for _, parameter, gradient in options.dense_gradients(type(self).__name__, group):
            state = self.state[parameter]
            if not state:
                state.update(self._blank(parameter, group))
            self._update(parameter, gradient, state, group)

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
