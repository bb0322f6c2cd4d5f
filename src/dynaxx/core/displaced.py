"""An objective at a point of its own, which can be moved while the model's weights stay where they are."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from dynaxx.core.objective import LossFunction, Objective
from dynaxx.errors import BadInput, NotApplicable


class Displaced(Objective):
    """The same loss at tensors of its own, a copy of the point at first.

    Its `parameters` are those tensors, so values, gradients and curvature products of it are taken where it stands;
    `Hessian` notices each move. Memory: one copy of the parameters.

    Args:
        base: The objective that is copied; where it stands in float64, so does this one.
        loss_fn: Another loss of the same model and batches, such as the 0–1 error; None: the same.

    Raises:
        BadInput: A parameter is in half precision, where small moves vanish.
        NotApplicable: Parameters are sharded.

    Example:
        >>> line = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(line.weight, 3.0)
        >>> moved = Displaced(Objective(line, lambda m, x: m(x).square().mean(), [torch.ones(1, 1)]))
        >>> moved.move([torch.full((1, 1), 2.0)])
        >>> moved.value(), line.weight.item()
        (4.0, 3.0)
    """

    def __init__(self, base: Objective, *, loss_fn: LossFunction | None = None) -> None:
        if base.sharded:
            raise NotApplicable("Displaced(base): parameters are sharded. Gather the model on one rank.")
        half = [n for n, p in zip(base.names, base.parameters, strict=True) if p.dtype.itemsize < 4]
        if half:
            raise BadInput(
                f"Displaced(base): {half[0]!r} is in half precision, where small moves vanish. "
                "Keep parameters in float32 and use autocast."
            )
        self.__dict__.update(base.__dict__)
        self._base = base
        self.loss_fn = loss_fn or base.loss_fn
        self.parameters = tuple(cast(nn.Parameter, p.detach().clone().requires_grad_()) for p in base.parameters)
        self._moved = dict[str, Tensor](zip(self.keys, self.parameters, strict=True))

    def move(self, tensors: Sequence[Tensor]) -> None:
        """Go to another point.

        Args:
            tensors: One per parameter, of its shape.
        """
        with torch.no_grad():
            for parameter, tensor in zip(self.parameters, tensors, strict=True):
                parameter.copy_(tensor)

    def leaves(self) -> dict[str, Tensor]:
        """Every parameter of the model, where this one stands, by the name it has in the model."""
        return self._base.leaves() | {key: tensor.detach() for key, tensor in self._moved.items()}

    @contextmanager
    def prepared(self, *, second_order: bool = False) -> Generator[None]:
        """As the base does, at the tensors of this one."""
        with self._base.prepared(second_order=second_order), self.substituted(self._moved):
            yield

    @contextmanager
    def substituted(self, tensors: Mapping[str, Tensor]) -> Generator[None]:
        """As the base does."""
        with self._base.substituted(tensors):
            yield
