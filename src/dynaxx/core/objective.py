"""The mean loss at a point of parameter space: what every probe and every curvature product is a function of."""

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.stateless import _reparametrize_module  # pyright: ignore[reportPrivateUsage]

from dynaxx.core.batches import examples as examples_in
from dynaxx.core.batches import split
from dynaxx.core.chosen import bare_model, chosen, is_managed
from dynaxx.core.finite import explain
from dynaxx.core.isolation import RandomState, seed_streams
from dynaxx.core.parameters import aligned, is_compiled, is_sharded, local, widest
from dynaxx.core.progress import report
from dynaxx.core.ranks import Ranks
from dynaxx.core.task import Task, derive_seed
from dynaxx.errors import BadInput

LossFunction = Callable[[nn.Module, Any], Tensor]
"""`loss_fn(model, batch)` → the mean loss over the examples of the batch, a scalar."""
Mode = Literal["evaluation", "training", "as is"]


class Objective:
    """L(θ) = Σᵢ wᵢ ℓ(model, batchᵢ) / Σᵢ wᵢ as a function of chosen parameters of a model, at its current weights.

    It is deterministic: random numbers drawn within the i-th batch's forward (dropout) are the same at every call, and
    the global streams, the modules' modes and the buffers are put back after.

    Args:
        model: The model; its weights are read where they are, and never written. What DistributedDataParallel or
            `torch.compile` wraps is taken out of it: the one would communicate, the other has no second derivative.
        loss_fn: `loss_fn(model, batch)` → mean loss over the examples of the batch.
        batches: The batches of which L is the mean; kept as a list.
        weight: `weight(batch)` → how many examples (or tokens) its mean stands for; None: the leading dimension of the
            first tensor in it.
        parameters: Which parameters: None, all that require a gradient; names; or a rule from name to True.
        mode: "evaluation": dropout off, running statistics in batch normalisation. "training": dropout with fixed
            numbers, batch statistics, running ones untouched. "as is": each module as it stands.
        microbatch: Split every batch along its leading dimension into parts of at most so many entries, which bounds
            the memory; exact where ℓ is a mean over entries (no batch statistics).
        process_group: L is the mean over the batches of all ranks of this group, or of "world"; each rank gives its
            own, in any number, and holds the same weights; values and derivatives are then collectives. None: this
            rank's batches alone. Under FSDP2 it is all ranks of the mesh in any case.

    Raises:
        BadInput: There is no batch or no parameter, a parameter cannot be differentiated, or weights do not sum up.
        NotApplicable: The model is wrapped in FSDP's first version.

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
        process_group: Any | Literal["world"] | None = None,
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
        self.model = bare_model(model)
        self.loss_fn = loss_fn
        self.mode: Mode = mode
        self.names, self.keys, self.parameters = chosen(self.model, parameters)
        self.batches = [part for batch in batches for part in split(batch, microbatch)]
        ranks = Ranks.of_parameters(self.parameters) if self._managed() else Ranks.of_group(process_group)
        self.ranks = ranks
        weights = [float((weight or examples_in)(batch)) for batch in self.batches]
        own = math.fsum(weights) if all(w >= 0 for w in weights) else math.nan
        device = self.parameters[0].device
        total = float(ranks.total(torch.tensor(own, dtype=widest(device), device=device)))
        if not (math.isfinite(total) and total > 0):
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
            options: `parameters`, `mode`, `microbatch`, `process_group`.

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

    def _managed(self) -> bool:
        """Whether it is FSDP2 that splits them."""
        return self.sharded and any(is_managed(module) for module in self.model.modules())

    def local(self) -> "Objective":
        """This rank's view: derivatives are taken by its shards as plain tensors; itself where nothing is sharded."""
        if not self._managed():
            return self
        from dynaxx.core.sharded import Local  # imports torch.distributed

        return Local(self)

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
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        held = dict(zip(self.keys, self.parameters, strict=True))
        other.names, other.keys, here = chosen(self.model, parameters)
        other.parameters = tuple(held.get(key, p) for key, p in zip(other.keys, here, strict=True))
        return other

    def leaves(self) -> dict[str, Tensor]:
        """Every parameter of the model, chosen or not, without its graph, by the name it has in the model."""
        return {key: p.detach() for key, p in self.model.named_parameters()}

    def total(self, derivative: Tensor) -> Tensor:
        """A derivative of L from that of the parts of this rank: summed where other ranks hold other batches.

        Args:
            derivative: Of Σ `parts()`, by the parameters.

        Returns:
            The derivative of L, on every rank.
        """
        return self.ranks.total(derivative)

    @contextmanager
    def prepared(self, *, second_order: bool = False) -> Generator[None]:
        """Modes set, random streams isolated, buffers replaced by copies; within it losses may be taken.

        Args:
            second_order: Second derivatives will be taken: attention runs on the math kernel, the only one that has
                them.
        """
        modes = [(module, module.training) for module in self.model.modules()]
        random = RandomState.capture()
        changing = self.mode == "training" or (self.mode == "as is" and any(training for _, training in modes))
        # Copies in their places: to write the buffers back would be seen by graphs that outlive this block.
        buffers = {name: b.clone() for name, b in self.model.named_buffers()} if changing else {}
        eager = torch.compiler.set_stance("force_eager") if is_compiled(self.model) else nullcontext()
        try:
            if self.mode != "as is":
                self.model.train(self.mode == "training")
            kernel = sdpa_kernel(SDPBackend.MATH) if second_order else nullcontext()
            with eager, kernel, self.substituted(buffers) if buffers else nullcontext():
                yield
        finally:
            for module, training in modes:
                module.training = training
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
        self.seed(i)
        report(passes=1)
        value = self.loss_fn(self.model, self.batches[i])
        if not isinstance(value, Tensor) or value.dim() != 0:
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise BadInput(f"loss_fn(model, batch) must return a scalar tensor. Got {found}. Take its mean.")
        return (cast(Any, value).full_tensor() if is_sharded(value) else value) * self.shares[i]

    def seed(self, i: int) -> None:
        """Set the random streams to where the i-th batch's forward begins; only within `prepared`.

        Args:
            i: Index of the (micro)batch.
        """
        seed_streams(derive_seed("objective", i, self.ranks.rank))

    @contextmanager
    def at(self, tensors: Sequence[Tensor], buffers: Mapping[str, Tensor] | None = None) -> Generator[None]:
        """Other tensors in the places of the parameters; the parameters themselves are not written.

        Args:
            tensors: One per parameter of `parameters`, of its shape.
            buffers: Further replacements by name.
        """
        with self.substituted(dict(zip(self.keys, tensors, strict=True)) | dict(buffers or {})):
            yield

    @contextmanager
    def substituted(self, tensors: Mapping[str, Tensor]) -> Generator[None]:
        """Other tensors in the places of parameters and buffers, by the names they have in the model.

        Args:
            tensors: Name → tensor.
        """
        with _reparametrize_module(self.model, dict(tensors), tie_weights=True):
            yield

    def in_float64(self, examples: int | None = None) -> "Objective":
        """The same loss at a float64 copy of the point, parameters and buffers, for checks.

        Args:
            examples: Only the first so many entries of the first batch; None: everything.

        Returns:
            The objective. Losses that make tensors of a fixed type themselves may fail in it.
        """
        from dynaxx.core.wide import Wide  # it is an objective itself

        return Wide(self, examples)

    def value(self) -> float:
        """L at the current weights, in float64 over the batches."""
        objective = self.local()
        with torch.no_grad(), objective.prepared():
            own = math.fsum(float(objective.loss(i)) for i in range(len(objective.batches)))
        if self.ranks.size == 1:
            return own
        device = self.parameters[0].device
        return float(self.ranks.total(torch.tensor(own, dtype=widest(device), device=device)))

    def gradient(self) -> list[Tensor]:
        """∇L at the current weights; `.grad` is neither read nor written.

        Returns:
            One tensor per parameter, sharded as it is; zeros where L does not depend on it.

        Raises:
            BadInput: L or ∇L is not finite; the message names the first module at fault.
        """
        objective = self.local()
        if objective is not self:
            return objective.wrapped(objective.gradient())
        total = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        with self.prepared(), torch.enable_grad():
            for part in self.parts():
                found = torch.autograd.grad(self._differentiable(part), self.parameters, materialize_grads=True)
                total = [a + aligned(b, a) for a, b in zip(total, found, strict=True)]
        total = [self.total(t) for t in total]
        bad = sum((~torch.isfinite(local(t))).sum() for t in total)
        if self.ranks.total(torch.as_tensor(bad)) > 0:
            self.explain_not_finite()
        return total

    def wrapped(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Tensors sharded as the parameters were before `local`, from this rank's parts.

        Args:
            parts: One per parameter.

        Returns:
            One per parameter.
        """
        return list(parts)

    def parts(self) -> Iterator[Tensor]:
        """The parts of L, one per batch, each with its graph; only within `prepared`."""
        for i in range(len(self.batches)):
            yield self.loss(i)

    def explain_not_finite(self) -> None:
        """Find where a value that is not finite comes from.

        Raises:
            BadInput: Always; it names the parameter, the module or the loss at fault.
        """
        explain(self)

    def _differentiable(self, loss: Tensor) -> Tensor:
        if not loss.requires_grad:
            raise BadInput(
                "loss_fn(model, batch) must return a tensor with a gradient. Got one without. "
                "Leave out .detach() and torch.no_grad()."
            )
        return loss
