"""The parameters of a model as a vector space by layer: who owns what, each tensor once, shards and all."""

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from dynaxx.core.records import Axis
from dynaxx.errors import BadInput

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")

Grouping = str | Callable[[str], str] | None
"""None: by module that owns parameters. "parameters": every parameter on its own. Another string: a regular expression;
its first group (or whole match) within a parameter's name is the layer. A callable: parameter name → layer."""

_ROOT = "(root)"
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One row of every per-layer figure.

    Args:
        name: Path of the module that owns the parameters, free of wrappers' names.
        kind: Class of that module; "group" where a user's grouping names no module.
        parameters: Names of the parameters.
        numel: Number of scalar parameters, over all shards.
        trainable: How many of them require a gradient.
    """

    name: str
    kind: str
    parameters: tuple[str, ...]
    numel: int
    trainable: int


class Layout:
    """The parameters of a model, each tensor once, grouped into layers.

    A layer is by default every module that owns parameters directly. A parameter shared by several modules belongs to
    the first. Names are those of the bare model: `_orig_mod.`, `module.` and other wrappers' prefixes are removed.

    Args:
        model: The model, wrapped (compiled, data-parallel) or bare.
        grouping: How parameters form layers.

    Raises:
        BadInput: The model has no parameters, or the grouping is not a pattern or callable or returns no name.

    Example:
        >>> layout = Layout(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)))
        >>> [(layer.name, layer.numel) for layer in layout.layers]
        [('0', 8), ('2', 3)]
    """

    def __init__(self, model: nn.Module, grouping: Grouping = None) -> None:
        named = dict(model.named_parameters())
        if not named:
            raise BadInput(
                f"watch(model={type(model).__name__}): the model has no parameters, so there is no update to measure."
            )
        call = f"watch(model={type(model).__name__})"
        lazy = [name for name, p in named.items() if isinstance(p, UninitializedParameter)]
        if lazy:
            raise BadInput(f"{call}: {some(lazy)} have no shape yet. Run one forward of the model before watch.")
        absent = [name for name, p in named.items() if p.is_meta]
        if absent:
            raise BadInput(
                f"{call}: {some(absent)} are on the meta device, without values. Load or initialise them before watch."
            )
        bare = tuple(map(bare_name, named))
        # A model of its own with `weight` and `module.weight` is no wrapper.
        self.names = bare if len(set(bare)) == len(bare) else tuple(named)
        self.parameters = tuple(named.values())
        modules = [(path, type(module).__name__) for path, module in model.named_modules()]
        kinds = dict(modules) | {bare_name(path) or _ROOT: kind for path, kind in modules}
        owner = _grouper(grouping)
        rows: dict[str, list[int]] = {}
        for i, name in enumerate(self.names):
            rows.setdefault(owner(name), []).append(i)
        self.layers = tuple(
            Layer(
                name=name,
                kind=kinds.get(name, "group"),
                parameters=tuple(self.names[i] for i in members),
                numel=sum(self.parameters[i].numel() for i in members),
                trainable=sum(self.parameters[i].numel() for i in members if self.parameters[i].requires_grad),
            )
            for name, members in rows.items()
        )
        self.axis = Axis(
            name="layer",
            labels=tuple(layer.name for layer in self.layers),
            weights=tuple(float(layer.numel) for layer in self.layers),
        )
        of = {i: row for row, members in enumerate(rows.values()) for i in members}
        self.layer_of = tuple(of[i] for i in range(len(self.names)))
        self._memo: dict[Hashable, Any] = {}
        self._sparse = any(bool(getattr(m, "sparse", False)) for m in model.modules())

    @property
    def numel(self) -> int:
        """Number of scalar parameters, over all shards."""
        return sum(layer.numel for layer in self.layers)

    @property
    def device(self) -> torch.device:
        """Where the first parameter lies."""
        return self.parameters[0].device

    @cached_property
    def plain(self) -> bool:
        """Whether every parameter is real and stored whole, so that its gradient needs no unpacking.

        A sparse gradient of such a parameter still does; embeddings with `sparse=True` are looked for by name.
        """
        return not any(p.is_complex() for p in self.parameters) and not self._sparse

    @cached_property
    def wide(self) -> bool:
        """Whether parameters and gradients are all float32 or all float64, so that norms need no other type."""
        # Older torch has no `grad_dtype`: there a gradient is of its parameter's type.
        types = {kind for p in self.parameters for kind in (p.dtype, getattr(p, "grad_dtype", p.dtype))}
        return types in ({torch.float32}, {torch.float64})

    @cached_property
    def sharded(self) -> bool:
        """Whether any parameter is split over ranks (FSDP2, tensor parallelism)."""
        return any(is_sharded(p) for p in self.parameters)

    @cached_property
    def mesh(self) -> "DeviceMesh | None":
        """The device mesh over which parameters are sharded; None if they are not.

        Raises:
            BadInput: Parameters live on more than one mesh.
        """
        meshes = {cast(Any, p).device_mesh for p in self.parameters if is_sharded(p)}
        if len(meshes) > 1:
            raise BadInput(
                f"watch(model): parameters are sharded over {len(meshes)} different device meshes; "
                "only one mesh is supported. Shard every module over the same mesh."
            )
        return next(iter(meshes), None)

    def index(self, device: torch.device) -> torch.Tensor:
        """Row of the layer that each parameter belongs to, int64 of shape (parameters,), on a device.

        Args:
            device: Where to put it; made once per device.

        Returns:
            The index tensor.
        """
        return self.memo(("index", device), lambda: torch.tensor(self.layer_of, dtype=torch.int64, device=device))

    def memo(self, key: Hashable, compute: Callable[[], T]) -> T:
        """A value that depends on the layout alone, computed once.

        Args:
            key: Its name.
            compute: Makes the value on the first call.

        Returns:
            The value.
        """
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]

    def local_parameters(self) -> list[torch.Tensor]:
        """This rank's part of every parameter, detached, in order."""
        return [local(p.detach()) for p in self.parameters] if self.sharded else [p.detach() for p in self.parameters]

    def local_gradients(self) -> list[torch.Tensor | None]:
        """This rank's part of every gradient as it stands now, in order; None where there is none."""
        if not self.sharded:
            return [p.grad for p in self.parameters]
        return [None if (g := p.grad) is None else local(g) for p in self.parameters]


def some(names: Sequence[str]) -> str:
    """How many parameters, and the first of their names, for a message.

    Args:
        names: At least one.

    Returns:
        The words.

    Example:
        >>> some(["fc.weight", "fc.bias"])
        '2 parameters (fc.weight, fc.bias)'
    """
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} parameter{'s' if len(names) > 1 else ''} ({shown})"


def _owner(name: str) -> str:
    return name.rpartition(".")[0] or _ROOT


def _grouper(grouping: Grouping) -> Callable[[str], str]:
    if grouping is None:
        return _owner
    if isinstance(grouping, str):
        if grouping == "parameters":
            return lambda name: name
        try:
            pattern = re.compile(grouping)
        except re.error as error:
            raise BadInput(f"watch(layers={grouping!r}) is not a regular expression: {error}.") from None

        def by_pattern(name: str) -> str:
            match = pattern.search(name)
            return _owner(name) if match is None else (match.group(1) if pattern.groups else match.group(0))

        return by_pattern
    if not callable(grouping):
        raise BadInput(
            f"watch(layers=...) must be a regular expression or a callable from name to layer. Got {grouping!r}."
        )

    def by_call(name: str) -> str:
        layer = grouping(name)
        if not isinstance(layer, str) or not layer:
            raise BadInput(
                f"watch(layers=...) must return a layer's name for every parameter. It returned {layer!r} for {name!r}."
            )
        return layer

    return by_call


def bare_name(name: str) -> str:
    """A parameter's or module's path without the names that wrappers put in.

    Args:
        name: The path as `named_parameters` gives it.

    Returns:
        The path in the bare model.

    Example:
        >>> bare_name("_orig_mod.encoder._checkpoint_wrapped_module.fc.weight")
        'encoder.fc.weight'
    """
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while parts and parts[0] == "module":  # data-parallel wrappers are outermost; elsewhere the name is the model's own
        del parts[0]
    return ".".join(parts)


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a DTensor; asks without importing `torch.distributed.tensor`.

    Args:
        tensor: Any tensor.

    Returns:
        True for a DTensor.
    """
    return type(tensor).__name__ == "DTensor"


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it is compiled, by `torch.compile` or in place by `module.compile()`.

    Args:
        model: Any module.

    Returns:
        True where Python hooks do not run between the operations of some module.
    """

    def here(module: nn.Module) -> bool:
        return type(module).__name__ == "OptimizedModule" or module.__dict__.get("_compiled_call_impl") is not None

    return any(here(module) for module in model.modules())


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor: the shard of a DTensor, or the tensor itself.

    Args:
        tensor: Any tensor.

    Returns:
        A plain tensor that shares memory with it.
    """
    return cast(Any, tensor).to_local() if is_sharded(tensor) else tensor


def aligned(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A DTensor spread over the ranks as another one is; a plain tensor as it is.

    Args:
        tensor: A tensor, such as a gradient that is still to be summed over ranks.
        like: What it shall be spread like.

    Returns:
        The tensor, communicated where need be.
    """
    if not is_sharded(tensor) or not is_sharded(like):
        return tensor
    there = cast(Any, like)
    return cast(Any, tensor).redistribute(there.device_mesh, there.placements)


def flat_real(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's entries as one real vector: sparse ones by their stored values, complex ones as pairs.

    Args:
        tensor: Dense, sparse COO or complex tensor.

    Returns:
        A real vector; a view where the layout allows.
    """
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.reshape(-1)


def widest(device: torch.device) -> torch.dtype:
    """The widest floating type of a device, for sums that run over a whole training.

    Args:
        device: Any device.

    Returns:
        float64, or float32 on Apple's GPUs, which lack it.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def own_parameters(optimizer: torch.optim.Optimizer) -> Sequence[torch.Tensor]:
    """Every parameter an optimizer holds, in the order of its groups.

    Args:
        optimizer: Any optimizer.

    Returns:
        The parameters.
    """
    return [p for group in optimizer.param_groups for p in group["params"]]
