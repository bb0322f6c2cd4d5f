"""What perturbers share: a model's trainable parameters, copies that go back bit for bit, noise of a step's own."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from dynaxx.core.parameters import bare_name, is_sharded, local
from dynaxx.core.task import derive_seed
from dynaxx.errors import BadInput


def trainable(call: str, model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by their names in the bare model.

    Args:
        call: Who asks, for the message ("Sam").
        model: The model.

    Returns:
        Name → parameter, at least one.

    Raises:
        BadInput: The model is none, or all of it is frozen.
    """
    if not isinstance(model, nn.Module):
        raise BadInput(f"{call}(model=...) must be a torch.nn.Module. Got {type(model).__name__}.")
    found = {bare_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise BadInput(f"{call}(model): no parameter requires a gradient, so there is nothing to train.")
    return found


class Kept:
    """Copies of tensors and of modules' buffers, put back bit for bit.

    Args:
        tensors: This rank's parts of them, sharing memory with the model.
        modules: Whose own buffers are kept too.
    """

    def __init__(self, tensors: Sequence[Tensor], modules: Sequence[nn.Module] = ()) -> None:
        # named_buffers() would take as long as all the copies of a small net.
        held = [(m, m._buffers) for m in modules if m._buffers]  # pyright: ignore[reportPrivateUsage]
        self._places = [(m, key, b) for m, buffers in held for key, b in buffers.items() if b is not None]
        self._tensors = [*tensors, *(b.detach() for _, _, b in self._places)]
        self._copies = [t.clone() for t in self._tensors]

    def put_back(self) -> None:
        """Every tensor as it was; a buffer that was replaced is the old one again."""
        for module, key, buffer in self._places:
            setattr(module, key, buffer)
        if not self._tensors:  # torch's refuses an empty list
            return
        with torch.no_grad():
            torch._foreach_copy_(self._tensors, self._copies)  # pyright: ignore[reportPrivateUsage]


class Noise:
    """Random numbers that depend on (seed, step, name) alone: no global stream moves, and a resumed run draws alike.

    Copies of a parameter on several ranks get equal numbers, shards of one different ones.

    Args:
        seed: Of the run.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def generator(self, step: int, name: str, parameter: Tensor) -> torch.Generator:
        """The stream of one parameter in one step, at its beginning.

        Args:
            step: Number of the step.
            name: The parameter's.
            parameter: For its device and its place among shards.

        Returns:
            A generator, valid until the next call.
        """
        place: tuple[int, ...] = ()
        if is_sharded(parameter):
            there = cast(Any, parameter)
            at = zip(there.device_mesh.get_coordinate(), there.placements, strict=True)
            place = tuple(i for i, placement in at if not placement.is_replicate())
        device = local(parameter).device
        found = self._generators.setdefault(device, torch.Generator(device))
        return found.manual_seed(derive_seed(self._seed, step, name, *place))

    def normal(self, step: int, name: str, parameter: Tensor) -> Tensor:
        """Independent numbers of mean 0 and variance 1, of the shape and type of this rank's part.

        Args:
            step: Number of the step.
            name: The parameter's.
            parameter: Its shape, type, device.

        Returns:
            A new tensor.
        """
        part = local(parameter)
        generator = self.generator(step, name, parameter)
        return torch.randn(part.shape, dtype=part.dtype, device=part.device, generator=generator)
