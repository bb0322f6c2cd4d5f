"""State in its own precision: what torch's loading would round to the parameters', and how many bytes it takes."""

from abc import abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dynaxx.core.methods import ModelOptimizer
from dynaxx.core.parameters import local


class Precise(ModelOptimizer):
    """An optimizer whose state keeps its precision through `load_state_dict`."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As torch's, with every tensor copied in the precision it was saved in.

        Args:
            state_dict: What `state_dict` returned.
        """
        super().load_state_dict(dict(state_dict))
        restore_state(self, state_dict)


class Planned(Precise):
    """One whose state is made tensor by tensor, so that its size is known from the shapes."""

    def planned_bytes(self) -> int:
        """Memory that the state will take, from the shapes alone."""
        return sum(
            tensor_bytes(self._blank(local(p.detach()).to("meta"), group))
            for group in self.param_groups
            for p in group["params"]
        )

    @abstractmethod
    def _blank(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        """The state of a parameter before the first step, on the parameter's device."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision of moments and factors: float32 at least.

    Args:
        dtype: Of a parameter.

    Returns:
        float64 for float64, else float32.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def restore_state(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Put the tensors of a saved state in place, in the types that they were saved in, as copies.

    torch casts them to the parameters' type (float32 moments of bfloat16 weights lose 16 bits) and keeps those that it
    need not cast, so that two optimizers loaded from one state in memory would share moments.

    Args:
        optimizer: One that has just loaded the same state dict by torch's own method.
        saved: The state dict.
    """
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in zip(indices, parameters, strict=True):
        if index in saved["state"]:
            optimizer.state[parameter] = {
                key: _placed(value, parameter, key) for key, value in saved["state"][index].items()
            }


def _placed(value: Any, parameter: Tensor, key: str) -> Any:
    if not isinstance(value, Tensor):
        return deepcopy(value)
    # Counts stay on the host, where reading one costs no wait for the device.
    return value.detach().clone() if key == "step" else value.detach().to(parameter.device, copy=True)


def tensor_bytes(state: Mapping[str, Any]) -> int:
    """Bytes of the tensors of one parameter's state.

    Args:
        state: Key → value.

    Returns:
        The sum over its tensors, on whatever device (meta included).
    """
    return sum(v.numel() * v.element_size() for v in state.values() if isinstance(v, Tensor))
