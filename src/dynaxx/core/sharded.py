"""An objective whose parameters FSDP2 has cut up, as a function of this rank's shards; every derivative exists.

```
shards ──gather──▶ whole parameters ──▶ the model, FSDP's hooks taken out ──▶ loss of this rank's batches
shards ◀─scatter── whole gradients       (scatter sums over the ranks)
```

Gathering and scattering are adjoint linear maps, each the other's derivative, so any derivative exists. FSDP's
own hooks have no second derivative, and DTensor's mean over shards of different size is not the mean over examples.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate

from dynaxx.core.chosen import is_managed
from dynaxx.core.objective import Objective
from dynaxx.core.parameters import is_sharded, local
from dynaxx.errors import BadInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How one tensor is spread over a mesh.

    Args:
        mesh: The device mesh.
        placements: One per dimension of the mesh.
        shape: Of the whole tensor.
        stride: Of the whole tensor.
    """

    mesh: Any
    placements: tuple[Any, ...]
    shape: torch.Size
    stride: tuple[int, ...]

    def wrapped(self, part: Tensor) -> DTensor:
        """This rank's part as a DTensor; no gradient passes.

        Args:
            part: The shard.

        Returns:
            The DTensor.
        """
        return DTensor.from_local(
            part.detach(), self.mesh, self.placements, run_check=False, shape=self.shape, stride=self.stride
        )


def layout_of(tensor: Tensor, mesh: Any) -> Layout:
    """How a tensor lies; a plain one counts as copied to every rank.

    Args:
        tensor: A DTensor or a plain tensor.
        mesh: The mesh for a plain one.

    Returns:
        Its layout.
    """
    if is_sharded(tensor):
        mesh, placements = cast(Any, tensor).device_mesh, tuple(cast(Any, tensor).placements)
    else:
        placements = (Replicate(),) * mesh.ndim
    return Layout(mesh=mesh, placements=placements, shape=tensor.shape, stride=tensor.stride())


class _Gather(torch.autograd.Function):
    """Shards to whole tensors."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return layout.wrapped(part).full_tensor().clone()  # a copy where nothing had to be gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return cast(Tensor, _Scatter.apply(gradient, ctx.layout)), None


class _Scatter(torch.autograd.Function):
    """Whole tensors, summed over the ranks, to shards."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        partial = DTensor.from_local(
            whole.detach().contiguous(), layout.mesh, [Partial()] * layout.mesh.ndim, run_check=False
        )
        return partial.redistribute(layout.mesh, layout.placements).to_local().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return cast(Tensor, _Gather.apply(gradient, ctx.layout)), None


class Local(Objective):
    """The same loss, its `parameters` being this rank's shards as plain tensors that share their memory.

    Derivatives by them are of the whole L, over all ranks. Every rank must call alike, and use the same parameters in
    each forward. Parameters are taken in their own type: FSDP's mixed precision is left out. Memory: one whole copy of
    the model's parameters on each rank while a loss or a product is taken; vectors stay cut.

    Args:
        whole: An objective of a model under FSDP2.

    Raises:
        BadInput: A rank has no batch.
    """

    def __init__(self, whole: Objective) -> None:
        self.__dict__.update(whole.__dict__)
        mesh = next(cast(Any, p).device_mesh for p in whole.parameters if is_sharded(p))
        count = torch.tensor([len(self.batches), -len(self.batches)], device=local(whole.parameters[0]).device)
        most, least = (int(n) for n in self.ranks.largest(count))
        if least == 0:
            raise BadInput(
                "Objective(batches=...): a rank has none, and gathering sharded parameters takes every rank. "
                "Give each rank at least one batch."
            )
        missing = most - len(self.batches)  # every rank must take part in every gathering
        self.batches = [*self.batches, *self.batches[-1:] * missing]
        self.shares = [*self.shares, *[0.0] * missing]
        chosen = set(self.keys)
        self._layouts = {key: layout_of(p, mesh) for key, p in whole.leaves().items()}
        self._parts = {key: local(p).requires_grad_(key in chosen) for key, p in whole.leaves().items()}
        self._plain = [not is_sharded(p) for p in whole.parameters]
        self.parameters = tuple(cast(nn.Parameter, self._parts[key]) for key in self.keys)

    def leaves(self) -> dict[str, Tensor]:
        """This rank's part of every parameter."""
        return self._parts

    def total(self, derivative: Tensor) -> Tensor:
        """The derivative itself: it has been summed on its way back to the shards."""
        return derivative

    @contextmanager
    def prepared(self, *, second_order: bool = False) -> Generator[None]:
        """As the whole objective does, with FSDP's hooks out and whole parameters in."""
        with _without_hooks(self.model), super().prepared(second_order=second_order), self.substituted(self._parts):
            yield

    @contextmanager
    def substituted(self, tensors: Mapping[str, Tensor]) -> Generator[None]:
        """Other shards in the places of parameters, gathered."""
        with torch.enable_grad():
            whole = {
                key: cast(Tensor, _Gather.apply(part, self._layouts[key])) if key in self._layouts else part
                for key, part in tensors.items()
            }
        with super().substituted(whole):
            yield

    def wrapped(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Tensors like the whole objective's parameters, from this rank's parts of them.

        Args:
            parts: One per parameter.

        Returns:
            DTensors where the parameters are; the part itself where they are not.
        """
        layouts = [self._layouts[key] for key in self.keys]
        return [
            part if plain else layout.wrapped(part)
            for part, plain, layout in zip(parts, self._plain, layouts, strict=True)
        ]


@contextmanager
def _without_hooks(model: nn.Module) -> Generator[None]:
    """FSDP's forward hooks taken out, and put back in their order."""
    taken: list[tuple[Any, list[Any]]] = []
    try:
        for handle in _handles(model):
            hooks = handle.hooks_dict_ref()
            if hooks is not None and handle.id in hooks:
                taken.append((hooks, list(hooks.items())))
                del hooks[handle.id]
        yield
    finally:
        for hooks, items in reversed(taken):
            hooks.clear()
            hooks.update(items)


def _handles(model: nn.Module) -> Sequence[Any]:
    found: list[Any] = []
    for module in model.modules():
        if is_managed(module):
            state = cast(Any, module)._get_fsdp_state()
            for handle in (state._pre_forward_hook_handle, state._post_forward_hook_handle):
                found.extend(handle.handles if type(handle).__name__ == "_MultiHandle" else [handle])
    return found
