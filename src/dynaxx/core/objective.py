"""The mean loss at a point of parameter space: what every probe and every curvature product is a function of."""

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.stateless import _reparametrize_module  # pyright: ignore[reportPrivateUsage]

from dynaxx.core.isolation import RandomState
from dynaxx.core.parameters import bare_name, is_sharded, some
from dynaxx.core.task import Task, derive_seed, leading
from dynaxx.errors import BadInput

LossFunction = Callable[[nn.Module, Any], Tensor]
"""`loss_fn(model, batch)` → the mean loss over the examples of the batch, a scalar."""
Mode = Literal["evaluation", "training", "as is"]


class Objective:
    """L(θ) = Σᵢ wᵢ ℓ(model, batchᵢ) / Σᵢ wᵢ as a function of chosen parameters of a model, at its current weights.

    It is deterministic: random numbers drawn within the i-th batch's forward (dropout) are the same at every call, and
    the global streams, the modules' modes and the buffers are put back after.

    Args:
        model: The model; its weights are read where they are, and never written.
        loss_fn: `loss_fn(model, batch)` → mean loss over the examples of the batch.
        batches: The batches of which L is the mean; kept as a list.
        weight: `weight(batch)` → how many examples (or tokens) its mean stands for; None: the leading dimension of the
            first tensor in it.
        parameters: Which parameters: None, all that require a gradient; names; or a rule from name to True.
        mode: "evaluation": dropout off, running statistics in batch normalisation. "training": dropout with fixed
            numbers, batch statistics, running ones untouched. "as is": each module as it stands.
        microbatch: Split every batch along its leading dimension into parts of at most so many entries, which bounds
            the memory; exact where ℓ is a mean over entries (no batch statistics).

    Raises:
        BadInput: There is no batch or no parameter, a parameter cannot be differentiated, or weights do not sum up.

    Example:
        >>> line = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(line.weight, 3.0)
        >>> objective = Objective(line, lambda m, x: m(x).square().mean() / 2, [torch.ones(4, 1), 2 * torch.ones(2, 1)])
        >>> objective.value()  # (4·9/2 + 2·36/2)/6
        9.0
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: Sequence[Any],
        *,
        weight: Callable[[Any], float] | None = None,
        parameters: Sequence[str] | Callable[[str], bool] | None = None,
        mode: Mode = "evaluation",
        microbatch: int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise BadInput(f"Objective(model=...) must be a torch.nn.Module. Got {type(model).__name__}.")
        if isinstance(batches, Tensor | Mapping) or not isinstance(batches, Sequence):
            raise BadInput(
                f"Objective(batches=...) must be a list of batches. Got {type(batches).__name__}; write [it]."
            )
        if microbatch is not None and microbatch < 1:
            raise BadInput(f"Objective(microbatch=...) must be at least 1. Got {microbatch}.")
        if mode not in ("evaluation", "training", "as is"):
            raise BadInput(f"Objective(mode=...) must be 'evaluation', 'training' or 'as is'. Got {mode!r}.")
        self.model = model
        self.loss_fn = loss_fn
        self.mode: Mode = mode
        self.names, self.keys, self.parameters = _chosen(model, parameters)
        whole = list(batches)
        self.batches = [part for batch in whole for part in split(batch, microbatch)]
        weights = [float((weight or _examples)(batch)) for batch in self.batches]
        if not (total := math.fsum(weights)) > 0 or not all(math.isfinite(w) and w >= 0 for w in weights):
            raise BadInput(
                f"Objective(weight=...) must be 0 or more for every batch and sum to more than 0. Got {weights[:5]}."
            )
        self.weight = total
        self.shares = [w / total for w in weights]

    @classmethod
    def of_task(cls, task: Task, model: nn.Module, batches: Sequence[Any], **options: Any) -> "Objective":
        """The objective of a task.

        Args:
            task: Gives the loss and the weights.
            model: The model at the point of interest.
            batches: Some of its batches.
            options: `parameters`, `mode`, `microbatch`.

        Returns:
            The objective.
        """
        return cls(model, task.loss, batches, weight=task.weight, **options)

    @property
    def numel(self) -> int:
        """Dimension of the parameter space, over all shards."""
        return sum(p.numel() for p in self.parameters)

    @property
    def sharded(self) -> bool:
        """Whether any parameter is split over ranks."""
        return any(is_sharded(p) for p in self.parameters)

    def layers(self) -> dict[str, tuple[str, ...]]:
        """Names of the parameters by the module that owns them, in order."""
        found: dict[str, list[str]] = {}
        for name in self.names:
            found.setdefault(name.rpartition(".")[0] or "(root)", []).append(name)
        return {layer: tuple(names) for layer, names in found.items()}

    def restricted(self, parameters: Sequence[str] | Callable[[str], bool]) -> "Objective":
        """The same loss as a function of fewer parameters; the others are held fixed.

        Args:
            parameters: Names, or a rule from name to True.

        Returns:
            The objective on the subspace.
        """
        other = object.__new__(Objective)
        other.__dict__.update(self.__dict__)
        other.names, other.keys, other.parameters = _chosen(self.model, parameters)
        return other

    @contextmanager
    def prepared(self, *, second_order: bool = False) -> Generator[None]:
        """Modes set, random streams isolated, buffers put back after; within it losses may be taken.

        Args:
            second_order: Second derivatives will be taken: attention runs on the math kernel, the only one that has
                them.
        """
        modes = [(module, module.training) for module in self.model.modules()]
        random = RandomState.capture()
        changing = self.mode == "training" or (self.mode == "as is" and any(training for _, training in modes))
        buffers = [(b, b.clone()) for b in self.model.buffers()] if changing else []
        try:
            if self.mode != "as is":
                self.model.train(self.mode == "training")
            with sdpa_kernel(SDPBackend.MATH) if second_order else nullcontext():
                yield
        finally:
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            random.restore()

    def loss(self, i: int) -> Tensor:
        """The i-th batch's part of L, wᵢ ℓ(model, batchᵢ) / Σ w, with its graph; only within `prepared`.

        Args:
            i: Index of the (micro)batch.

        Returns:
            A scalar.

        Raises:
            BadInput: The loss is not a scalar tensor.
        """
        torch.manual_seed(derive_seed("objective", i))
        value = self.loss_fn(self.model, self.batches[i])
        if not isinstance(value, Tensor) or value.dim() != 0:
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise BadInput(f"loss_fn(model, batch) must return a scalar tensor. Got {found}. Take its mean.")
        return value * self.shares[i]

    @contextmanager
    def at(self, tensors: Sequence[Tensor], buffers: Mapping[str, Tensor] | None = None) -> Generator[None]:
        """Other tensors in the places of the parameters; the parameters themselves are not written.

        Args:
            tensors: One per parameter of `parameters`, of its shape.
            buffers: Further replacements by name.
        """
        replacement = dict(zip(self.keys, tensors, strict=True)) | dict(buffers or {})
        with _reparametrize_module(self.model, replacement, tie_weights=True):
            yield

    def in_float64(self, examples: int | None = None) -> "Objective":
        """The same loss at a float64 copy of the point, parameters and buffers, for checks.

        Args:
            examples: Only the first so many entries of the first batch; None: everything.

        Returns:
            The objective. Losses that make tensors of a fixed type themselves may fail in it.
        """
        return _Wide(self, examples)

    def value(self) -> float:
        """L at the current weights, in float64 over the batches."""
        with torch.no_grad(), self.prepared():
            return math.fsum(float(self.loss(i)) for i in range(len(self.batches)))

    def gradient(self) -> list[Tensor]:
        """∇L at the current weights; `.grad` is neither read nor written.

        Returns:
            One tensor per parameter; zeros where L does not depend on it.

        Raises:
            BadInput: L or ∇L is not finite; the message names the first module at fault.
        """
        total: list[Tensor] | None = None
        with self.prepared():
            for part in self.parts():
                found = torch.autograd.grad(self._differentiable(part), self.parameters, materialize_grads=True)
                total = list(found) if total is None else [a + b for a, b in zip(total, found, strict=True)]
        assert total is not None
        if not all(bool(torch.isfinite(local_part(t)).all()) for t in total):
            self.explain_not_finite()
        return total

    def parts(self) -> Iterator[Tensor]:
        """The parts of L, one per batch, each with its graph; only within `prepared`."""
        for i in range(len(self.batches)):
            yield self.loss(i)

    def explain_not_finite(self) -> None:
        """Find where a value that is not finite comes from.

        Raises:
            BadInput: Always; it names the parameter, the module or the loss at fault.
        """
        call = "The objective cannot be probed here"
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(local_part(parameter.detach())).all()):
                raise BadInput(
                    f"{call}: the parameter {bare_name(name)!r} is not finite. Go back to a sound checkpoint."
                )
        fault: list[str] = []

        def look(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                del module, inputs
                if not fault and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                    fault.append(name or "(root)")

            return hook

        handles = [module.register_forward_hook(look(bare_name(name))) for name, module in self.model.named_modules()]
        try:
            with torch.no_grad(), self.prepared():
                for i in range(len(self.batches)):
                    value = self.loss(i)
                    if fault:
                        raise BadInput(f"{call}: the output of the module {fault[0]!r} is not finite on batch {i}.")
                    if not bool(torch.isfinite(value)):
                        raise BadInput(
                            f"{call}: the loss of batch {i} is {float(value)}, though the model's outputs are finite."
                        )
        finally:
            for handle in handles:
                handle.remove()
        raise BadInput(
            f"{call}: the gradient is not finite, though loss and outputs are; look for 0/0 or √0 in a backward."
        )

    def _differentiable(self, loss: Tensor) -> Tensor:
        if not loss.requires_grad:
            raise BadInput(
                "loss_fn(model, batch) must return a tensor with a gradient. Got one without. "
                "Leave out .detach() and torch.no_grad()."
            )
        return loss


class _Wide(Objective):
    """An objective in float64: wide leaves stand in the places of parameters and buffers while it is evaluated."""

    def __init__(self, narrow: Objective, examples: int | None) -> None:
        self.__dict__.update(narrow.__dict__)
        wide = {
            key: tensor.detach().to(torch.float64) if tensor.is_floating_point() else tensor.detach().clone()
            for key, tensor in [*narrow.model.named_parameters(), *narrow.model.named_buffers()]
        }
        chosen = set(narrow.keys)
        self._wide = {key: t.requires_grad_() if key in chosen else t for key, t in wide.items()}
        self.parameters = tuple(cast(nn.Parameter, self._wide[key]) for key in narrow.keys)
        if examples is not None:
            self.batches, self.shares = split(narrow.batches[0], examples)[:1], [1.0]
        self.batches = [_widened(batch) for batch in self.batches]

    @contextmanager
    def prepared(self, *, second_order: bool = False) -> Generator[None]:
        """As the narrow one does, at the wide tensors."""
        with (
            super().prepared(second_order=second_order),
            _reparametrize_module(self.model, self._wide, tie_weights=True),
        ):
            yield


def _widened(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(torch.float64) if batch.is_floating_point() else batch
    if isinstance(batch, Mapping):
        return {key: _widened(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(_widened, batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map(_widened, batch))
    return batch


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor.

    Args:
        tensor: Any tensor.

    Returns:
        The shard of a DTensor, or the tensor itself.
    """
    return cast(Any, tensor).to_local() if is_sharded(tensor) else tensor


def split(batch: Any, size: int | None) -> list[Any]:
    """Split a batch along the leading dimension.

    Args:
        batch: A tensor, or nested tuples, lists and mappings of them; tensors of another leading dimension than the
            first, and whatever is no tensor, go into every part.
        size: Entries in a part; None: do not split.

    Returns:
        The parts, the last one smaller where it does not divide.

    Example:
        >>> [len(x) for x, y in split((torch.zeros(5, 2), torch.zeros(5)), 2)]
        [2, 2, 1]
    """
    n = leading(batch)
    if size is None or n is None or n <= size:
        return [batch]
    return [_slice(batch, n, start, start + size) for start in range(0, n, size)]


def _slice(batch: Any, n: int, start: int, stop: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[start:stop] if batch.dim() and batch.shape[0] == n else batch
    if isinstance(batch, Mapping):
        return {key: _slice(value, n, start, stop) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_slice(value, n, start, stop) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(_slice(value, n, start, stop) for value in batch)
    return batch


def _examples(batch: Any) -> float:
    n = leading(batch)
    if n is None:
        raise BadInput(f"Objective: no tensor in a {type(batch).__name__} batch, so it has no size. Give weight=.")
    return float(n)


def _chosen(
    model: nn.Module, rule: Sequence[str] | Callable[[str], bool] | None
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[nn.Parameter, ...]]:
    """Bare names, names as the model has them, and parameters."""
    named = {bare_name(key): (key, p) for key, p in model.named_parameters()}
    if isinstance(rule, str):
        rule = [rule]
    if rule is None:
        wanted = [name for name, (_, p) in named.items() if p.requires_grad]
    elif callable(rule):
        wanted = [name for name, (_, p) in named.items() if p.requires_grad and rule(name)]
    else:
        missing = [name for name in rule if name not in named]
        if missing:
            raise BadInput(f"Objective(parameters=...): the model has no {some(missing)}.")
        wanted = [name for name in named if name in set(rule)]
    if not wanted:
        raise BadInput(
            f"Objective(model={type(model).__name__}): no parameter to differentiate by. "
            "At least one must require a gradient and be chosen."
        )
    for problem, remedy in (
        ([n for n in wanted if not (named[n][1].is_floating_point() or named[n][1].is_complex())],
         "are integers, which have no derivative; leave them out by parameters="),
        ([n for n in wanted if named[n][1].is_complex()],
         "are complex; hold them as pairs of real numbers (torch.view_as_real) or leave them out by parameters="),
        ([n for n in wanted if not named[n][1].requires_grad],
         "do not require a gradient; leave them out or call requires_grad_()"),
    ):  # fmt: skip
        if problem:
            raise BadInput(f"Objective(model={type(model).__name__}): {some(problem)} {remedy}.")
    return tuple(wanted), tuple(named[n][0] for n in wanted), tuple(named[n][1] for n in wanted)
