"""The training loop of a Task, as small as it can be."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dynaxx.core.isolation import evaluation
from dynaxx.core.methods import Perturber
from dynaxx.core.task import Task, derive_seed
from dynaxx.errors import BadInput


def train_steps(
    task: Task,
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[Any],
    *,
    scheduler: LRScheduler | None = None,
    accumulate: int | Callable[[], int] = 1,
    perturber: Perturber | Callable[[], Perturber | None] | None = None,
) -> Iterator[torch.Tensor]:
    """Train over the batches, one optimizer step per item taken from the iterator.

    Each step follows the gradient of the mean over all examples of its batches, Σᵢ wᵢ Lᵢ / Σᵢ wᵢ with
    wᵢ = `task.weight(batchᵢ)`, however ragged they are; the `accumulate` batches of a step are held at once, because
    the weights must be known before the first backward. A last step with fewer batches is taken too.

    Args:
        task: Gives the loss and the weights.
        model: The model, in the mode to train it in.
        optimizer: Over the model's parameters; their gradients must be clear.
        batches: One epoch, or what is left of it.
        scheduler: Stepped after each optimizer step.
        accumulate: Batches per optimizer step, at least 1; where it changes along the training, a function that gives
            that of the step to come.
        perturber: Computes the gradients its own way; it may take the batches of a step twice. Where it changes along
            the training, a function that gives the one of the step to come.

    Yields:
        The mean loss of the step at the weights themselves, a detached scalar on its device; the gradients are cleared
        by then.

    Raises:
        BadInput: The loss is not a scalar tensor with a gradient, or the weights of a step do not sum to more than 0.
    """
    if not callable(accumulate) and accumulate < 1:
        raise BadInput(f"train_steps(accumulate=...) must be at least 1. Got {accumulate}.")
    source = iter(batches)
    while micro := list(islice(source, accumulate() if callable(accumulate) else accumulate)):
        compute = partial(_backward, task, model, micro, _shares(task, micro))
        now = perturber if perturber is None or isinstance(perturber, Perturber) else perturber()
        mean = compute() if now is None else now.gradients(compute)
        optimizer.step()
        if now is not None:
            now.after_step(optimizer)
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        yield mean


def evaluate(task: Task, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
    """Mean loss and metrics over all examples of the batches, leaving modes and random streams as they were.

    Each is Σᵢ wᵢ vᵢ / Σᵢ wᵢ in float64 with wᵢ = `task.weight(batchᵢ)`: the mean over all examples, ragged last batch
    included. Nothing waits for the device before the last batch is through.

    Args:
        task: Gives the loss, the metrics and the weights.
        model: The model.
        batches: What to evaluate on.

    Returns:
        "loss" and the name of each metric → mean. A metric left out on some batches is the mean over the others.

    Raises:
        BadInput: There is no batch, a value is not a scalar, or a metric is named "loss".
    """
    values: dict[str, list[tuple[float, torch.Tensor | float]]] = {}
    with evaluation(model):
        for batch in batches:
            weight = task.weight(batch)
            metrics = task.metrics(model, batch)
            if "loss" in metrics:
                raise BadInput(f'{type(task).__name__}.metrics(model, batch) may not name a metric "loss". Rename it.')
            for name, value in {"loss": task.loss(model, batch), **metrics}.items():
                values.setdefault(name, []).append((weight, _scalar(task, name, value)))
    if not values:
        raise BadInput(f"evaluate({type(task).__name__}): there is no batch to evaluate on. Give at least one.")
    return {name: _mean(task, parts) for name, parts in values.items()}


def epoch_seed(run_seed: int, epoch: int) -> int:
    """The seed of an epoch's training batches.

    Args:
        run_seed: The run's seed.
        epoch: The epoch's number, from 0.

    Returns:
        What to give to `task.batches("train", seed)`.
    """
    return derive_seed(run_seed, "train", epoch)


def validation_seed(run_seed: int) -> int:
    """The seed of the validation batches: one for the whole run, so that every evaluation sees the same batches.

    Args:
        run_seed: The run's seed.

    Returns:
        What to give to `task.batches("validation", seed)`.
    """
    return derive_seed(run_seed, "validation")


def _backward(task: Task, model: nn.Module, micro: list[Any], shares: list[float]) -> torch.Tensor:
    """Gradients of the mean loss over a step's batches; returns that mean."""
    mean: torch.Tensor | None = None
    for share, batch in zip(shares, micro, strict=True):
        loss = _trainable(task, task.loss(model, batch))
        part = loss if share == 1.0 else loss * share
        part.backward()
        mean = part.detach() if mean is None else mean + part.detach()
    assert mean is not None
    return mean


def _shares(task: Task, micro: list[Any]) -> list[float]:
    if len(micro) == 1:
        return [1.0]
    weights = [task.weight(batch) for batch in micro]
    return [weight / _positive(task, math.fsum(weights)) for weight in weights]


def _mean(task: Task, parts: list[tuple[float, torch.Tensor | float]]) -> float:
    total = _positive(task, math.fsum(weight for weight, _ in parts))
    return math.fsum(weight * float(value) for weight, value in parts) / total


def _positive(task: Task, total: float) -> float:
    if not total > 0:
        raise BadInput(f"{type(task).__name__}.weight(batch) must sum to more than 0 over the batches. Got {total}.")
    return total


def _scalar(task: Task, name: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if value.dim() != 0:
            call = "loss(model, batch)" if name == "loss" else f"metrics(model, batch)[{name!r}]"
            raise BadInput(
                f"{type(task).__name__}.{call} must return a scalar tensor. "
                f"Got shape {tuple(value.shape)}. Take its mean."
            )
        return value.detach()
    return value


def _trainable(task: Task, loss: Any) -> torch.Tensor:
    call = f"{type(task).__name__}.loss(model, batch)"
    if not isinstance(loss, torch.Tensor):
        raise BadInput(f"{call} must return a scalar tensor. Got {type(loss).__name__}. Leave out .item() or float().")
    _scalar(task, "loss", loss)
    if not loss.requires_grad:
        raise BadInput(f"{call} must return a tensor with a gradient. Got one without. Leave out .detach().")
    return loss
