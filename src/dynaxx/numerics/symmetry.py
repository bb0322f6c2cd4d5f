"""Which hidden units of a network may be reordered, found by following every axis through one forward."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker
from torch.utils.weak import WeakTensorKeyDictionary

from dynaxx.core.isolation import evaluation
from dynaxx.core.objective import Objective
from dynaxx.core.task import derive_seed
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.axes import Axis, Factor, fixed, leaves
from dynaxx.numerics.axis_call import Axes, Call
from dynaxx.numerics.axis_rules import RULES, default, pointwise
from dynaxx.numerics.permutation import Part, Symmetry

TOLERANCE = 1e-5
"""Largest change of the outputs, relative to their largest entry, that float32 rounding of reordered sums explains;
ten times what an MLP with 512 units shows."""
JITTER = 0.1
"""`verify` moves every tensor by this share of its size first, so that equal entries, such as the gains and running
statistics of a fresh normalisation, cannot hide that they were left in place."""
FORWARDS = 18
"""Most forwards of one batch that `verify` takes: 2, and 16 to find a group at fault among 2¹⁶."""

Watcher = Callable[[Call, Tensor, Axes], None]
"""`(call, output, axes)`: sees every output that depends on the data, with the axes known so far."""


class Trace(TorchDispatchMode):
    """Follows the axes of tensors from a model's parameters and buffers through everything that is computed.

    Args:
        tensors: Parameters and buffers by name, as they stand in the model.
        watcher: Sees what is computed from data.
    """

    def __init__(self, tensors: Mapping[str, Tensor], watcher: Watcher | None = None) -> None:
        super().__init__()
        self.axes = {name: tuple((Factor(n, source=name),) for n in t.shape) for name, t in tensors.items()}
        self.used = set[str]()
        self._names = WeakTensorKeyDictionary()
        self._known = WeakTensorKeyDictionary()
        self._weights = WeakTensorKeyDictionary()
        self._watcher = watcher
        self._modules = ModuleTracker()
        for name, tensor in tensors.items():
            if tensor in self._known:  # tied: one tensor, two names
                self.axes[name] = self._known[tensor]
            self._known[tensor], self._names[tensor], self._weights[tensor] = self.axes[name], name, True

    def __enter__(self) -> "Trace":
        self._modules.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._modules.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        given = _bound(func, args, kwargs or {})
        name = func._schema.name.partition("::")[2].removesuffix("_")
        call = Call(name, self._where(name), given, self._of)
        tensors = call.tensors()
        weights = bool(tensors) and all(t in self._weights for t in tensors)
        self._learn(call, func, out, weights)
        return out

    def _of(self, tensor: Tensor) -> Axes:
        """The axes of a tensor; what comes from outside keeps its order."""
        if tensor in self._names:
            self.used.add(self._names[tensor])
        if tensor not in self._known:
            self._known[tensor] = tuple(fixed(n, "the data") for n in tensor.shape)
        return self._known[tensor]

    def _learn(self, call: Call, func: Any, out: Any, weights: bool) -> None:
        outputs = [t for t in (out if isinstance(out, list | tuple) else (out,)) if isinstance(t, Tensor)]
        rule = RULES.get(call.name)
        drawn = torch.Tag.nondeterministic_seeded in func.tags
        if rule is None and torch.Tag.pointwise in func.tags and isinstance(out, Tensor):
            rule = pointwise
        found: Any = (default if rule is None or drawn else rule)(call, out)
        each: list[Axes | None] = [found] if isinstance(out, Tensor) else list(found or ())
        for i, tensor in enumerate(outputs):
            known = each[i] if i < len(each) else None
            axes = call.fresh(tensor.shape) if known is None else known
            assert len(axes) == tensor.dim(), call.name
            self._known[tensor] = axes
            if weights:
                self._weights[tensor] = True
            elif self._watcher is not None:
                self._watcher(call, tensor, axes)

    def _where(self, operation: str) -> str:
        inner = max(self._modules.parents, key=lambda path: (path.count("."), len(path)), default="Global")
        path = inner.partition(".")[2]
        return f"{operation} in {path!r}" if path else operation


def _bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | kwargs


def state(objective: Objective) -> dict[str, Tensor]:
    """Parameters and buffers of an objective's model where it stands, by the names that the model has.

    Args:
        objective: The point.

    Returns:
        Name → tensor, detached.
    """
    return {**objective.leaves(), **{name: b.detach() for name, b in objective.model.named_buffers()}}


@contextmanager
def followed(objective: Objective, tensors: Mapping[str, Tensor], watcher: Watcher | None = None) -> Generator[Trace]:
    """Operations within are followed, at tensors that stand in for the model's, in evaluation mode.

    Args:
        objective: Whose model.
        tensors: Parameters and buffers by name.
        watcher: Sees what is computed from data.

    Yields:
        The trace.
    """
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it hides whole layers in one operation
    try:
        with (
            evaluation(objective.model),
            objective.substituted(tensors),
            sdpa_kernel(SDPBackend.MATH),
            Trace(tensors, watcher) as trace,
        ):
            yield trace
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def symmetry(objective: Objective) -> Symmetry:
    """The groups of units that may be reordered without a change of the function, with every axis that they index.

    One forward of the first batch is followed operation by operation: what is added, multiplied entry by entry or
    contracted is indexed together; what meets data, targets or an operation that is sensitive to order stays. Heads
    and head dimensions, groups of convolutions, and flattened pixels are told apart by the reshapes. The residual
    stream is one group. Of what it finds nothing is believed before `verify`.

    Args:
        objective: The model, its loss and its batches.

    Returns:
        The symmetry.

    Raises:
        NotApplicable: Nothing may be reordered; the message says which operations stand against it.
    """
    tensors = state(objective)
    with followed(objective, tensors) as trace:
        objective.loss_fn(objective.model, objective.batches[0])
    found = _named(trace, {name: tuple(t.shape) for name, t in tensors.items()})
    if not found.groups:
        shown = "; ".join(f"{axis}: {why}" for axis, why in list(found.reasons.items())[:4]) or "no parameter is used"
        raise NotApplicable(f"no hidden units can be reordered in {type(objective.model).__name__}: {shown}.")
    return found


def _named(trace: Trace, shapes: Mapping[str, tuple[int, ...]]) -> Symmetry:
    names: dict[Factor, str] = {}
    reasons: dict[str, str] = {}

    def part(tensor: str, index: int, factor: Factor, many: bool) -> Part:
        used = tensor in trace.used
        if factor.fixed or not used:
            reasons.setdefault(f"{tensor}[{index}]", factor.fixed or "it is not used")
            return Part(group=None, size=factor.size)
        if factor not in names:
            base = f"{tensor}[{index}]"
            taken = set(names.values())
            names[factor] = next(
                n for k in range(len(taken) + 1) if (n := f"{base}.{k}" if many or k else base) not in taken
            )
        return Part(group=names[factor], size=factor.size)

    def axis(tensor: str, index: int, factors: Axis) -> tuple[Part, ...]:
        found = leaves(factors)
        return tuple(part(tensor, index, f, len(found) > 1) for f in found) or (Part(group=None, size=1),)

    axes = {
        name: tuple(axis(name, i, factors) for i, factors in enumerate(trace.axes[name]))
        for name in shapes
        if 0 not in shapes[name]
    }
    return Symmetry(groups={name: factor.size for factor, name in names.items()}, axes=axes, reasons=reasons)


def outputs(objective: Objective, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The loss of the first batch and whatever the model returns for it, in evaluation mode.

    Args:
        objective: The model, its loss and its batches.
        tensors: Parameters and buffers that stand in for the model's.

    Returns:
        The loss, then the floating-point tensors of the model's outputs.
    """
    seen: list[Tensor] = []

    def look(module: nn.Module, args: Any, out: Any) -> None:
        del module, args
        seen.extend(_floating(out))

    with evaluation(objective.model), objective.substituted(tensors):
        hook = objective.model.register_forward_hook(look)
        try:
            loss = objective.loss_fn(objective.model, objective.batches[0])
        finally:
            hook.remove()
    return [loss, *seen]


def verify(objective: Objective, found: Symmetry, *, seed: int = 0) -> float:
    """Reorder at random and compare the outputs: loss and model outputs of the first batch must stay.

    Args:
        objective: The model, its loss and its batches.
        found: What is claimed to leave them unchanged.
        seed: Of the permutation, and of the shift that is made first.

    Returns:
        The largest change relative to the largest output.

    Raises:
        NotApplicable: The outputs change by more than rounding; the message names a group that does it.
    """
    tensors = _jittered(state(objective), seed)
    before = outputs(objective, tensors)
    everything = found.random(seed)
    change = _change(before, outputs(objective, found.apply(tensors, everything)))
    if change <= _allowed(before):
        return change
    groups = list(found.groups)
    while len(groups) > 1:  # halves whose parts leave the outputs unchanged do so together
        half = groups[: len(groups) // 2]
        some = found.apply(tensors, {group: everything[group] for group in half})
        fault = not _change(before, outputs(objective, some)) <= _allowed(before)
        groups = half if fault else groups[len(half) :]
    places = ", ".join(dict.fromkeys(place.name for place in found.places(groups[0])))
    raise NotApplicable(
        f"reordering the group {groups[0]!r} ({places}) changes the outputs of {type(objective.model).__name__}, by "
        f"{change:.2g} of their size. Name the axes that move together by symmetry=."
    )


def _jittered(tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Every entry shifted by an amount of its own; what is nowhere negative (a variance) is scaled and stays so."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):  # masks hold −∞
            found[name] = tensor.clone()
            continue
        generator = torch.Generator().manual_seed(derive_seed(seed, "jitter", name))
        noise = JITTER * torch.randn(tensor.shape, generator=generator).to(tensor)
        positive = bool((tensor >= 0).all() and tensor.any())
        found[name] = tensor * noise.exp() if positive else tensor + noise * (tensor.abs().mean() + JITTER)
    return found


def _floating(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _floating(part)]


def _change(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    size = max(float(a.abs().max()) for a in one if a.numel()) or 1.0
    return max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True) if a.numel()) / size


def _allowed(found: Sequence[Tensor]) -> float:
    return max(TOLERANCE, *(4 * torch.finfo(t.dtype).eps for t in found))


def checked(objective: Objective, given: Mapping[str, Any] | Symmetry | None, *, seed: int = 0) -> Symmetry:
    """The symmetry that was found or given, verified.

    Args:
        objective: The model, its loss and its batches.
        given: A symmetry, or names of axes for `Symmetry.of`; None: it is found.
        seed: Of the check.

    Returns:
        The symmetry.

    Raises:
        BadInput: A given name does not fit the model.
        NotApplicable: There is none, or it changes the function.
    """
    if given is None:
        found = symmetry(objective)
    elif isinstance(given, Symmetry):
        found = given
    else:
        found = Symmetry.of(given, {name: tuple(t.shape) for name, t in state(objective).items()})
    if not found.groups:
        raise BadInput("Symmetry(groups=...) names no group of units. Name the axes that move together.")
    verify(objective, found, seed=seed)
    return found
