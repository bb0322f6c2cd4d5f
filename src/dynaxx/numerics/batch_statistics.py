"""Statistics of activations at weights where nobody trained: batch normalisation's anew, and units' rescaled."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from dynaxx.core.objective import Objective

Statistics = Mapping[str, tuple[Tensor, Tensor]]
"""Module → mean and standard deviation of each channel of its output, float64."""


class Moments:
    """Mean and variance of each channel over everything that is added, merged without cancellation (Chan et al. 1983).

    Args:
        dimension: Which axis holds the channels.
    """

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self.count = 0
        self.mean = self.sum_of_squares = torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Take in more values.

        Args:
            values: Any shape with the channels' axis.
        """
        rows = values.detach().double().movedim(self._dimension, -1).flatten(0, -2)
        mean = rows.mean(0)
        squares = (rows - mean).square().sum(0)
        if self.count:
            total = self.count + len(rows)
            apart = mean - self.mean
            squares = squares + self.sum_of_squares + apart.square() * self.count * len(rows) / total
            mean = self.mean + apart * len(rows) / total
        self.count, self.mean, self.sum_of_squares = self.count + len(rows), mean, squares

    def deviation(self) -> Tensor:
        """Population standard deviation."""
        return (self.sum_of_squares / self.count).sqrt()


def normalisations(model: nn.Module) -> list[_BatchNorm]:
    """Modules with running statistics.

    Args:
        model: Any model.

    Returns:
        Batch normalisations that keep them.
    """
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def writable(objective: Objective, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with copies of the buffers: modules in training mode write them.

    Args:
        objective: Whose model.
        tensors: Parameters and buffers by the names that the model has.

    Returns:
        What may be substituted for the model's own.
    """
    return dict(tensors) | {name: tensors[name].clone() for name, _ in objective.model.named_buffers()}


def renewed(objective: Objective, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Running means and variances as they would be at these weights, over all batches of the objective at once.

    Each batch is normalised by its own statistics, as in training (Izmailov et al. 2018); the variance is that of all
    examples together and not a mean of those within batches. One pass.

    Args:
        objective: The model, its loss and its batches.
        tensors: Parameters and buffers by the names that the model has.

    Returns:
        The same with statistics renewed; the same objects where the model has none.
    """
    names = {m: name for name, m in objective.model.named_modules()}
    seen = {m: Moments(1) for m in normalisations(objective.model)}
    if not seen:
        return dict(tensors)
    hooks = [m.register_forward_pre_hook(_collecting(moments)) for m, moments in seen.items()]
    try:
        with torch.no_grad(), objective.prepared(), objective.substituted(writable(objective, tensors)):
            for m in seen:
                m.train()
            for i in range(len(objective.batches)):
                objective.loss(i)
    finally:
        for hook in hooks:
            hook.remove()
    found = dict(tensors)
    for m, moments in seen.items():
        prefix = f"{names[m]}." if names[m] else ""
        mean, variance = f"{prefix}running_mean", f"{prefix}running_var"
        if moments.count:
            found[mean] = moments.mean.to(tensors[mean])
            found[variance] = (moments.sum_of_squares / max(1, moments.count - 1)).to(tensors[variance])
    return found


def _collecting(moments: Moments) -> Callable[..., None]:
    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        del module
        moments.add(args[0])

    return look


def layers_with(objective: Objective, weights: Sequence[str]) -> dict[str, nn.Module]:
    """Linear and convolution modules that own these weights.

    Args:
        objective: Whose model.
        weights: Names of parameters.

    Returns:
        Path → module.
    """
    return {
        path: module
        for path, module in objective.model.named_modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)  # pyright: ignore[reportPrivateUsage]
        and (f"{path}.weight" if path else "weight") in weights
    }


def unit_statistics(
    objective: Objective, tensors: Mapping[str, Tensor], layers: Mapping[str, nn.Module]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation of the units of layers, over all batches; one pass.

    Args:
        objective: The model, its loss and its batches.
        tensors: Parameters and buffers by the names that the model has.
        layers: Which modules.

    Returns:
        Path → mean and standard deviation of each unit.
    """
    found = {path: Moments(_channels(module)) for path, module in layers.items()}

    def collect(path: str, out: Tensor) -> None:
        found[path].add(out)

    with (
        _changed(layers, collect),
        torch.no_grad(),
        objective.prepared(),
        objective.substituted(writable(objective, tensors)),
    ):
        for i in range(len(objective.batches)):
            objective.loss(i)
    return {path: (m.mean, m.deviation()) for path, m in found.items() if m.count}


@contextmanager
def rescaled(
    objective: Objective, tensors: Mapping[str, Tensor], layers: Mapping[str, nn.Module], goal: Statistics
) -> Generator[None]:
    """Within, the units of layers have wanted means and deviations: REPAIR (Jordan et al. 2023).

    Between two networks the variance of interpolated units collapses; each is shifted and scaled to where the end
    points' statistics, interpolated, say that it should be. One pass to measure them, with the layers below already
    corrected batch by batch; the correction is then fixed.

    Args:
        objective: The model, its loss and its batches.
        tensors: Parameters and buffers, which the caller substitutes within.
        layers: Which modules.
        goal: Path → mean and standard deviation that are wanted.
    """
    found = {path: Moments(_channels(module)) for path, module in layers.items()}

    def measure(path: str, out: Tensor) -> Tensor:
        found[path].add(out)
        own = Moments(_channels(layers[path]))
        own.add(out)
        return _affine(out, _channels(layers[path]), own, goal[path])

    with (
        _changed(layers, measure),
        torch.no_grad(),
        objective.prepared(),
        objective.substituted(writable(objective, tensors)),
    ):
        for i in range(len(objective.batches)):
            objective.loss(i)

    def correct(path: str, out: Tensor) -> Tensor:
        return _affine(out, _channels(layers[path]), found[path], goal[path])

    with _changed({path: layers[path] for path in goal}, correct):
        yield


def _channels(module: nn.Module) -> int:
    return -1 if isinstance(module, nn.Linear) else -1 - len(cast(Any, module).kernel_size)


def _affine(out: Tensor, dimension: int, seen: Moments, goal: tuple[Tensor, Tensor]) -> Tensor:
    deviation = seen.deviation()
    gain = torch.where(deviation > 0, goal[1] / deviation, 1.0)  # a unit that is constant has nothing to scale
    shape = [1] * out.dim()
    shape[dimension] = -1
    shift = goal[0] - gain * seen.mean
    return out * gain.to(out).reshape(shape) + shift.to(out).reshape(shape)


@contextmanager
def _changed(layers: Mapping[str, nn.Module], change: Callable[[str, Tensor], Tensor | None]) -> Generator[None]:
    """Hooks on the outputs of modules; what a hook returns replaces the output."""

    def hook(path: str) -> Callable[..., Tensor | None]:
        def look(module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
            del module, args
            return change(path, out)

        return look

    handles = [module.register_forward_hook(hook(path)) for path, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
