"""A copy of a model and its optimizer that trains for a few steps; the originals and every random stream stay."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynaxx.core.objective import Objective
from dynaxx.core.progress import report
from dynaxx.core.task import derive_seed
from dynaxx.errors import BadInput, NotApplicable

OptimizerSource = Callable[[nn.Module], Optimizer] | Optimizer
"""What makes the optimizer of a model, or the live optimizer of the objective's model, whose state is copied."""


class Scratch:
    """A model and an optimizer of their own, trained from where the originals stand.

    Modules are in training mode as far as the original is: one whose root is in evaluation mode is trained whole.
    Memory: one copy of the model and of the optimizer's state.

    Args:
        objective: The loss and the point.
        optimizer: Makes one, or the live one; None: plain gradient descent.
        seed: Of random numbers drawn within the model (dropout).

    Raises:
        BadInput: The optimizer is not one of this model's, or all its rates are 0.
        NotApplicable: Parameters are sharded, or a step needs a closure.
    """

    def __init__(self, objective: Objective, optimizer: OptimizerSource | None, seed: int) -> None:
        if objective.sharded:
            raise NotApplicable("A training copy needs the whole model on one rank; these parameters are sharded.")
        memo: dict[int, Any] = {}
        self.model = copy.deepcopy(objective.model, memo)
        if not objective.model.training:
            self.model.train()
        self.optimizer = _copied(objective, self.model, optimizer, memo)
        self._objective = objective
        self._shares = _shares(self.optimizer)
        torch.manual_seed(seed)

    def set_rate(self, rate: float) -> None:
        """Give the group with the largest rate this one, and scale the others in proportion.

        Args:
            rate: η.
        """
        for group, share in zip(self.optimizer.param_groups, self._shares, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * share)
            else:
                group["lr"] = rate * share

    def step(self, batch: Any) -> float:
        """Take one optimizer step; where the loss is not finite it is not taken. Waits for the device.

        Args:
            batch: A training batch.

        Returns:
            The loss before the step.

        Raises:
            BadInput: The loss is not a scalar with a gradient.
            NotApplicable: The optimizer's step needs a closure.
        """
        report(passes=1)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = self._objective.loss_fn(self.model, batch)
            if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.requires_grad:
                raise BadInput("loss_fn(model, batch) must return a scalar tensor with a gradient. Take its mean.")
            value = loss.item()
            if math.isfinite(value):
                loss.backward()
                self._update()
        return value

    def value(self) -> float:
        """The objective's loss at the copy's weights, over all its batches, with its random numbers."""
        with torch.no_grad():
            return math.fsum(share * self._loss(i) for i, share in enumerate(self._objective.shares))

    def _loss(self, i: int) -> float:
        self._objective.seed(i)
        report(passes=1)
        return self._objective.loss_fn(self.model, self._objective.batches[i]).item()

    def _update(self) -> None:
        try:
            self.optimizer.step()
        except TypeError as error:
            if "closure" not in str(error):
                raise
            name = type(self.optimizer).__name__
            raise NotApplicable(f"{name}.step() needs a closure; its cost per step is not known here.") from error


def stretch(training: Iterable[Any] | None, own: Sequence[Any], index: int, steps: int, seed: int) -> Iterator[Any]:
    """The training batches of one data order, the same at every call.

    A sequence is shuffled batch by batch, anew in each epoch. Another iterable is read from its start, begun again
    where it ends; its index-th stretch of `steps` batches is taken, and what it draws from the global streams is
    seeded.

    Args:
        training: A re-iterable of batches; None: `own`.
        own: The objective's batches.
        index: Which order, from 0.
        steps: How many batches.
        seed: Of the orders.

    Yields:
        The batches.

    Raises:
        BadInput: There is none, or the iterable cannot be read twice.
    """
    source = own if training is None else training
    if isinstance(source, Sequence):
        yield from islice(_shuffled(source, derive_seed(seed, "order", index)), steps)
        return
    if isinstance(source, Iterator):
        raise BadInput(
            f"training= must be a re-iterable of batches. Got a {type(source).__name__}; give a list or loader."
        )
    torch.manual_seed(derive_seed(seed, "order", index))
    batches = chain.from_iterable(map(_nonempty, repeat(source)))
    yield from islice(batches, index * steps, (index + 1) * steps)


def _shuffled(batches: Sequence[Any], seed: int) -> Iterator[Any]:
    generator = torch.Generator().manual_seed(seed)
    while len(batches):
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i]
    raise BadInput("training= holds no batch. Give at least one.")


def _nonempty(source: Iterable[Any]) -> Iterator[Any]:
    batch = None
    for batch in source:
        yield batch
    if batch is None:
        raise BadInput("training= holds no batch. Give at least one.")


def _copied(objective: Objective, twin: nn.Module, source: OptimizerSource | None, memo: dict[int, Any]) -> Optimizer:
    if source is None:
        return torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=1.0)
    if isinstance(source, Optimizer):
        _check_owner(source, objective.model)
        made = copy.deepcopy(source, memo)
        # torch copies groups and state alone; an optimizer's further attributes come after, but not what a scheduler
        # or a watched run has put in the place of its methods.
        rest = {k: v for k, v in vars(source).items() if k not in vars(made) and k not in dir(type(source))}
        vars(made).update(copy.deepcopy(rest, memo))
        return made
    made = source(twin)
    if not isinstance(made, Optimizer):
        raise BadInput(f"optimizer(model) must return a torch.optim.Optimizer. Got {type(made).__name__}.")
    _check_owner(made, twin)
    return made


def _check_owner(optimizer: Optimizer, model: nn.Module) -> None:
    known = set(map(id, model.parameters()))
    if any(id(p) not in known for group in optimizer.param_groups for p in group["params"]):
        raise BadInput("optimizer= holds parameters that are not the model's. Give the optimizer of this very model.")


def _shares(optimizer: Optimizer) -> list[float]:
    """Each group's rate over the largest."""
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    top = max(rates)
    if not (math.isfinite(top) and top > 0):
        raise BadInput(f"optimizer= must have a group with a rate above 0. Got {rates}. Set lr to anything positive.")
    return [rate / top for rate in rates]
