"""State trees as named tensors and JSON, both ways and exactly: any nested state_dict, without pickle.

What JSON can say is written as it is. Everything else is an object with one marked key:

```
{"$tuple": […]}  {"$set": […]}  {"$frozenset": […]}  {"$size": […]}          sequences; lists are plain
{"$dict": [[key, value], …]}  "$ordered"  "$counter"                         mappings; a dict of strings is plain
{"$int": "0x…"}  {"$float": "7ff0…"}  {"$complex": [re, im]}                 beyond 2⁵³; not finite (the IEEE bits)
{"$bytes": "…"}  {"$bytearray": "…"}  {"$str": "…"}                          hex; a string that is not valid Unicode
{"$dtype": "bfloat16"}  {"$device": "cuda:0"}
{"$tensor": name, "order": […], "dtype": "complex64"}                        in the tensor file, under that name
{"$array": name, "dtype": "<f8", "shape": […]}  {"$scalar": hex, "dtype": "<f8"}   NumPy
```
"""

import struct
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dynaxx.checkpoints.tensorfile import CODES
from dynaxx.core.parameters import is_sharded
from dynaxx.errors import BadInput, CorruptData, NotApplicable

Path = tuple[Any, ...]
_DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_DEPTH = 100  # what is written here can be read at any depth of the caller's stack
_EXACT_INT = 2**53  # other readers of JSON hold numbers as doubles


def encode(
    state: Any, root: str = "state", *, host: bool = True, shards: bool = False
) -> tuple[dict[str, Tensor], Any]:
    """A state tree as tensors by name and a JSON-able tree that refers to them.

    Tensors are detached and brought to the CPU; they share memory with the state where they are there already. Tensors
    with the same storage, offset, shape and strides are one entry; views that merely overlap are separate copies.

    Args:
        state: Nested mappings, lists, tuples and sets of numbers, strings, tensors, arrays and what else a state_dict
            holds.
        root: What the state is called in error messages.
        host: Bring tensors to the CPU; else each stays on its device.
        shards: Take DTensors too, as they are; one that stands in several places is several entries, since only its
            shards could tell, and a rank may hold none of them.

    Returns:
        Name → contiguous tensor, and the tree.

    Raises:
        BadInput: Something in the state cannot be stored; the message names where it is.
        NotApplicable: A tensor is one rank's shard, and `shards` is off.

    Example:
        >>> tensors, tree = encode({"lr": 0.1, "betas": (0.9, 0.999), "w": torch.zeros(2)})
        >>> list(tensors), tree
        (['w'], {'lr': 0.1, 'betas': {'$tuple': [0.9, 0.999]}, 'w': {'$tensor': 'w'}})
    """
    encoder = _Encoder(root, host=host, shards=shards)
    tree = encoder.node(state, ())
    return encoder.tensors, tree


def decode(tensors: Mapping[str, Tensor], tree: Any) -> Any:
    """The state that `encode` was given.

    Args:
        tensors: Name → tensor.
        tree: The tree that refers to them.

    Returns:
        The state; a tensor that stood in several places is one object again.

    Raises:
        CorruptData: The tree does not follow the format, or names a tensor that is missing.
    """
    try:
        return _Decoder(tensors).value(tree)
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError, struct.error) as error:
        raise CorruptData(f"The state tree does not follow the format: {type(error).__name__}: {error}.") from error


def chosen(tree: Any, keys: Collection[str], path: object) -> dict[str, Any]:
    """The part of a tree that stands under some keys of the state.

    Args:
        tree: The tree.
        keys: The keys.
        path: What to call the checkpoint in an error message.

    Returns:
        A tree.

    Raises:
        BadInput: One of the keys is not there.
    """
    if isinstance(keys, str):
        raise BadInput(f"load(only=...) must be a collection of keys. Got {keys!r}: write ({keys!r},).")
    there = cast("dict[str, Any]", tree) if isinstance(tree, dict) else {}
    if absent := [key for key in keys if key not in there or key.startswith("$")]:
        raise BadInput(f"load(only=...): {path} holds no {', '.join(absent)}. There are: {', '.join(there)}.")
    return {key: there[key] for key in keys}


def referenced(tree: Any) -> set[str]:
    """The tensors that a tree needs.

    Args:
        tree: The tree, or a part of one.

    Returns:
        Their names.
    """
    if isinstance(tree, list):
        return set().union(*map(referenced, cast("list[Any]", tree)))
    if not isinstance(tree, dict):
        return set()
    tree = cast("dict[str, Any]", tree)
    name = tree.get("$tensor", tree.get("$array"))
    return {name} if isinstance(name, str) else set().union(*map(referenced, tree.values()))


class _Encoder:
    def __init__(self, root: str, *, host: bool, shards: bool) -> None:
        self.root = root
        self.host = host
        self.shards = shards
        self.tensors: dict[str, Tensor] = {}
        self.seen: dict[Any, dict[str, Any]] = {}

    def node(self, value: Any, path: Path) -> Any:
        if len(path) > _DEPTH:
            raise BadInput(
                f"{self.root} is nested more than {_DEPTH} deep, or contains itself, at {self.where(path[:5])}…. "
                "Store a flat structure, or leave the back reference out."
            )
        if isinstance(value, Tensor):
            return self.shard(value, path) if is_sharded(value) else self.tensor(value, path)
        if isinstance(value, np.generic) and value.dtype.names is None and not value.dtype.hasobject:
            return {"$scalar": value.tobytes().hex(), "dtype": value.dtype.str}
        # By exact type: a subclass (IntEnum, a named tuple, an EasyDict) would come back as something else.
        writer = _WRITERS.get(type(value))
        if writer is None:
            raise BadInput(f"{self.where(path)} is {_described(value)}: it cannot be stored. {_remedy(value)}")
        return writer(self, value, path)

    def items(self, values: Iterable[Any], path: Path) -> list[Any]:
        return [self.node(value, (*path, i)) for i, value in enumerate(values)]

    def pairs(self, values: Mapping[Any, Any], path: Path) -> list[Any]:
        return [[self.key(key, path), self.node(value, (*path, key))] for key, value in values.items()]

    def mapping(self, values: Mapping[Any, Any], path: Path) -> Any:
        if all(type(key) is str and not key.startswith("$") and _string(key) is key for key in values):
            return {key: self.node(value, (*path, key)) for key, value in values.items()}
        return {"$dict": self.pairs(values, path)}

    def key(self, key: Any, path: Path) -> Any:
        if isinstance(key, Tensor):
            raise BadInput(f"{self.where(path)} has a tensor as a key, which is found by identity only. Use its name.")
        return self.node(key, (*path, key))

    def tensor(self, tensor: Tensor, path: Path) -> dict[str, Any]:
        self.check(tensor, path)
        same = (
            (
                tensor.device,
                tensor.untyped_storage().data_ptr(),
                tensor.storage_offset(),
                tensor.shape,
                tensor.stride(),
                tensor.dtype,
                tensor.is_conj(),
                tensor.is_neg(),
            )
            if tensor.numel()
            else id(tensor)
        )
        if same not in self.seen:
            stored, marks = _stored(tensor, self.host)
            self.seen[same] = {"$tensor": self.keep(stored, path), **marks}
        return self.seen[same]

    def shard(self, tensor: Tensor, path: Path) -> dict[str, Any]:
        where = self.where(path)
        if not self.shards:
            raise NotApplicable(
                f"{where} is a DTensor, one rank's shard (FSDP2 or tensor parallelism), and a store of one process "
                "holds whole tensors. Save with ShardedStore, on every rank."
            )
        if tensor.dtype not in CODES or any(p.is_partial() for p in cast(Any, tensor).placements):
            raise BadInput(
                f"{where} is a DTensor of {tensor.dtype} on {cast(Any, tensor).placements}: only shards and replicas "
                "of real numbers can be stored. Redistribute or convert it in state_dict()."
            )
        return {"$tensor": self.keep(tensor.detach(), path)}

    def check(self, tensor: Tensor, path: Path) -> None:
        # Parameter and Buffer answer to isinstance by an attribute; any other subclass keeps data elsewhere.
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            raise BadInput(
                f"{self.where(path)} is a tensor of class {type(tensor).__name__}: only plain ones can be stored. "
                "An uninitialised (lazy) one gets its shape in a first forward; convert others in state_dict()."
            )
        if tensor.layout != torch.strided or tensor.is_meta:
            kind = "a meta tensor, without data" if tensor.is_meta else f"sparse ({tensor.layout})"
            raise BadInput(f"{self.where(path)} is {kind}: only dense tensors can be stored. Materialise it first.")
        if not tensor.is_complex() and tensor.dtype not in CODES and tensor.dtype != torch.float4_e2m1fn_x2:
            raise BadInput(
                f"{self.where(path)} is of {tensor.dtype}, which cannot be stored. Dequantize it in state_dict()."
            )

    def array(self, array: "np.ndarray[Any, Any]", path: Path) -> dict[str, Any]:
        if array.dtype.hasobject or array.dtype.names is not None:
            raise BadInput(
                f"{self.where(path)} is an array of {array.dtype}: only arrays of numbers, strings or dates can be "
                "stored. Use a list, or one array per field."
            )
        flat = np.array(array, order="C", ndmin=1).reshape(-1)
        name = self.keep(torch.from_numpy(flat.view(np.uint8) if flat.nbytes else np.empty(0, np.uint8)), path)
        return {"$array": name, "dtype": array.dtype.str, "shape": list(array.shape)}

    def keep(self, tensor: Tensor, path: Path) -> str:
        """Enter a tensor under a name made of its path, and return the name."""
        base = "/".join(map(str, path)).encode("utf-8", "backslashreplace").decode() or self.root
        name, n = base, 1
        while name in self.tensors or name == "__metadata__":  # keys 1 and "1"; a name that the file format keeps
            name, n = f"{base}~{n}", n + 1
        self.tensors[name] = tensor
        return name

    def where(self, path: Path) -> str:
        return self.root + "".join(f"[{key!r}]" for key in path)


_WRITERS: dict[type, Callable[[_Encoder, Any, Path], Any]] = {
    type(None): lambda encoder, value, path: value,
    bool: lambda encoder, value, path: value,
    int: lambda encoder, value, path: value if abs(value) < _EXACT_INT else {"$int": hex(value)},
    float: lambda encoder, value, path: _float(value),
    complex: lambda encoder, value, path: {"$complex": [_float(value.real), _float(value.imag)]},
    str: lambda encoder, value, path: _string(value),
    bytes: lambda encoder, value, path: {"$bytes": value.hex()},
    bytearray: lambda encoder, value, path: {"$bytearray": value.hex()},
    torch.dtype: lambda encoder, value, path: {"$dtype": str(value).removeprefix("torch.")},
    torch.device: lambda encoder, value, path: {"$device": str(value)},
    list: _Encoder.items,
    tuple: lambda encoder, value, path: {"$tuple": encoder.items(value, path)},
    torch.Size: lambda encoder, value, path: {"$size": encoder.items(value, path)},
    # Sorted, so that equal states are equal files: a set's own order changes from process to process.
    set: lambda encoder, value, path: {"$set": encoder.items(sorted(value, key=repr), path)},
    frozenset: lambda encoder, value, path: {"$frozenset": encoder.items(sorted(value, key=repr), path)},
    dict: _Encoder.mapping,
    defaultdict: _Encoder.mapping,
    OrderedDict: lambda encoder, value, path: {"$ordered": encoder.pairs(value, path)},
    Counter: lambda encoder, value, path: {"$counter": encoder.pairs(value, path)},
    np.ndarray: _Encoder.array,
}


def _float(value: float) -> Any:
    return value if value - value == 0 else {"$float": struct.pack(">d", value).hex()}


def _string(value: str) -> Any:
    try:
        value.encode()
    except UnicodeEncodeError:  # lone surrogates, as in file names that are not UTF-8: JSON would join pairs of them
        return {"$str": value.encode("utf-8", "surrogatepass").hex()}
    return value


def _stored(tensor: Tensor, host: bool) -> tuple[Tensor, dict[str, Any]]:
    """A contiguous tensor of a dtype that the file knows, and what turns it back.

    Strides of dense tensors (transposed, channels last) survive, because some kernels round differently by layout.
    """
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if host:
        tensor = tensor.cpu()
    marks: dict[str, Any] = {}
    if not tensor.is_contiguous():
        order = sorted(range(tensor.dim()), key=lambda axis: (-tensor.stride(axis), axis))
        if tensor.permute(order).is_contiguous():
            tensor, marks["order"] = tensor.permute(order), order
        else:
            tensor = tensor.contiguous()
    if tensor.dtype not in CODES:
        marks["dtype"] = str(tensor.dtype).removeprefix("torch.")
        tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor.view(torch.uint8)
    return tensor, marks


class _Decoder:
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.made: dict[str, Tensor] = {}

    def value(self, node: Any) -> Any:
        if isinstance(node, list):
            return self.items(cast("list[Any]", node))
        if not isinstance(node, dict):
            return node
        node = cast("dict[str, Any]", node)
        mark = next(iter(node), "")
        if not mark.startswith("$"):
            return {key: self.value(value) for key, value in node.items()}
        if mark == "$tensor":
            return self.tensor(node)
        if mark in ("$array", "$scalar"):
            return self.numpy(node)
        return _READERS[mark](self, node[mark])

    def items(self, body: list[Any]) -> list[Any]:
        return [self.value(item) for item in body]

    def pairs(self, body: list[Any]) -> list[tuple[Any, Any]]:
        return [(self.value(key), self.value(value)) for key, value in body]

    def tensor(self, node: dict[str, Any]) -> Tensor:
        name = node["$tensor"]
        if name not in self.made:
            tensor = self.tensors[name]
            if "dtype" in node:
                dtype = _DTYPES[node["dtype"]]
                tensor = torch.view_as_complex(tensor) if dtype.is_complex else tensor.view(dtype)
            if "order" in node:
                order = node["order"]
                tensor = tensor.permute([order.index(axis) for axis in range(len(order))])
            self.made[name] = tensor
        return self.made[name]

    def numpy(self, node: dict[str, Any]) -> Any:
        dtype = np.dtype(node["dtype"])
        if dtype.hasobject:  # its bytes would be read as addresses
            raise ValueError(f"an array of dtype {dtype}")
        if "$scalar" in node:
            data = bytes.fromhex(node["$scalar"])
            return np.ndarray((), dtype, buffer=data)[()]
        raw = self.tensors[node["$array"]].numpy()
        return np.ndarray(tuple(node["shape"]), dtype, buffer=raw.tobytes() or None).copy()


# Not in the object: functions of its own that it holds are a cycle, and keep tensors alive until the collector runs.
_READERS: dict[str, Callable[[_Decoder, Any], Any]] = {
    "$tuple": lambda decoder, body: tuple(decoder.items(body)),
    "$set": lambda decoder, body: set(decoder.items(body)),
    "$frozenset": lambda decoder, body: frozenset(decoder.items(body)),
    "$size": lambda decoder, body: torch.Size(decoder.items(body)),
    "$dict": lambda decoder, body: dict(decoder.pairs(body)),
    "$ordered": lambda decoder, body: OrderedDict(decoder.pairs(body)),
    "$counter": lambda decoder, body: Counter(dict(decoder.pairs(body))),
    "$int": lambda _, body: int(body, 16),
    "$float": lambda _, body: struct.unpack(">d", bytes.fromhex(body))[0],
    "$complex": lambda decoder, body: complex(*decoder.items(body)),
    "$str": lambda _, body: bytes.fromhex(body).decode("utf-8", "surrogatepass"),
    "$bytes": lambda _, body: bytes.fromhex(body),
    "$bytearray": lambda _, body: bytearray.fromhex(body),
    "$dtype": lambda _, body: _DTYPES[body],
    "$device": lambda _, body: torch.device(body),
}


def _described(value: Any) -> str:
    if isinstance(value, FunctionType | BuiltinFunctionType | MethodType):
        return f"a function ({value.__qualname__})"
    return f"an object of class {type(value).__module__}.{type(value).__qualname__}"


def _remedy(value: Any) -> str:
    if callable(value):
        return "Leave functions out of state_dict(); they are built again when the training is."
    if isinstance(value, tuple):
        return "Store a named tuple as its `_asdict()`."
    if isinstance(value, dict):
        return "Store it as a plain `dict(...)`."
    return (
        "Its owner's state_dict() must return numbers, strings, tensors, arrays, and dicts, lists and tuples of them."
    )
