"""An objective in float64: a copy of the point, for checks that rounding must not enter."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from dynaxx.core.batches import split, widened
from dynaxx.core.objective import Objective


class Wide(Objective):
    """The same loss at wide leaves, which stand in the places of parameters and buffers while it is evaluated.

    Args:
        narrow: The objective that is copied.
        examples: Only the first so many entries of each rank's first batch; None: everything.
    """

    def __init__(self, narrow: Objective, examples: int | None) -> None:
        self.__dict__.update(narrow.__dict__)
        self._narrow = narrow
        chosen = set(narrow.keys)
        self._wide = {
            key: tensor.detach().to(torch.float64, copy=True) if tensor.is_floating_point() else tensor.clone()
            for key, tensor in [*narrow.leaves().items(), *narrow.model.named_buffers()]
        }
        self._wide = {key: t.requires_grad_() if key in chosen else t for key, t in self._wide.items()}
        self.parameters = tuple(cast(nn.Parameter, self._wide[key]) for key in narrow.keys)
        if examples is not None:
            self.batches = [part for batch in narrow.batches[:1] for part in split(batch, examples)[:1]]
            self.shares = [1.0 / self.ranks.size] * len(self.batches)
        self.batches = [widened(batch) for batch in self.batches]

    def leaves(self) -> dict[str, Tensor]:
        """The wide parameters."""
        return {key: self._wide[key].detach() for key in self._narrow.leaves()}

    def total(self, derivative: Tensor) -> Tensor:
        """As the narrow one does."""
        return self._narrow.total(derivative)

    @contextmanager
    def prepared(self, *, second_order: bool = False) -> Generator[None]:
        """As the narrow one does, at the wide tensors."""
        with self._narrow.prepared(second_order=second_order), self.substituted(self._wide):
            yield

    @contextmanager
    def substituted(self, tensors: Mapping[str, Tensor]) -> Generator[None]:
        """As the narrow one does."""
        with self._narrow.substituted(tensors):
            yield
