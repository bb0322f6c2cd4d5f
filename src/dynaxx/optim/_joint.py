"""Several optimizers as one: each updates its own parameters, one step is a step of all."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from dynaxx.core.parameters import own_parameters
from dynaxx.errors import BadInput


class Joint(Optimizer):
    """One step of the joint optimizer is one step of each part, in order; groups and state are the parts' own.

    Where hidden matrices are trained by one method and the rest by another, a loop has two optimizers, and whatever
    takes one (schedulers, gradient scalers, checkpoints, `dynaxx.watch`) sees half of the model. This one holds all.
    A scheduler on the joint optimizer multiplies the rate of every part; its checkpoint is in torch's own format,
    one after the other.

    Args:
        parts: The optimizers; use them no longer themselves.

    Raises:
        BadInput: There is no part, one is no `torch.optim.Optimizer`, or two hold the same parameter.

    Example:
        >>> linear = torch.nn.Linear(2, 2)
        >>> joint = Joint(torch.optim.SGD([linear.weight], lr=0.1), torch.optim.Adam([linear.bias], lr=0.01))
        >>> [group["lr"] for group in joint.param_groups]
        [0.1, 0.01]
    """

    def __init__(self, *parts: Optimizer) -> None:
        if not parts:
            raise BadInput("Joint(...) must be given at least one optimizer. Got none.")
        holder: dict[torch.Tensor, int] = {}
        for index, part in enumerate(parts):
            if not isinstance(part, Optimizer):
                raise BadInput(f"Joint(...) must be given torch.optim.Optimizers. Got {type(part).__name__}.")
            for parameter in own_parameters(part):
                if holder.setdefault(parameter, index) != index:
                    raise BadInput(
                        f"Joint(...): optimizers {holder[parameter]} and {index} both hold a parameter of shape "
                        f"{tuple(parameter.shape)}, which would be updated twice a step. Leave it to one of them."
                    )
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            self.state.update(part.state)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Every part's step.

        Args:
            closure: Computes the loss and its gradients; called once, before the first part.

        Returns:
            The closure's loss; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused, as no part is named: add the group to a part before joining.

        Args:
            param_group: As torch's optimizers take it.

        Raises:
            BadInput: Always, but for torch's own constructor.
        """
        if "parts" in self.__dict__:
            raise BadInput(
                "Joint.add_param_group(...): whose it is cannot be told. Add it to one of `parts`, and join them anew."
            )
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state_dict: What `state_dict` returned.
        """
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Give every part the joint state and its own groups: torch's loading has made new ones of both."""
        begin = 0
        for part in self.parts:
            end = begin + len(part.param_groups)
            part.param_groups, begin = self.param_groups[begin:end], end
            part.state = self.state
